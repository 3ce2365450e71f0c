"""What a training prints, and what only its log file has."""

import io
import re
from contextlib import redirect_stdout

import pytest
from helpers import run_tool, write_tiny_config

ITERS = 8
NAMES = 'experiment_name', 'visualizer.name'  # mmengine keeps a logger and a visualizer by name


@pytest.fixture(scope='module')
def printed_and_logged(digits_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('console')
    config = write_tiny_config(folder, 'by_iteration', digits_root, ITERS)
    options = ['--cfg-options', *(f'{key}=console' for key in NAMES)]
    with redirect_stdout(io.StringIO()) as printed:
        run_tool('train', config, '--work-dir', folder / 'run', *options)
    (log,) = folder.glob('run/*/*.log')
    return printed.getvalue(), log


def test_console_has_what_people_look_at(printed_and_logged):
    printed, log = printed_and_logged
    assert len(re.findall(r'Iter\(train\)', printed)) == ITERS
    assert 'mIoU' in printed and 'curves.png' in printed
    assert f'are in {log}' in printed, 'where the rest is'


def test_config_hooks_and_environment_are_in_the_log_file_alone(printed_and_logged):
    printed, log = printed_and_logged
    for text in (
        'train_dataloader = dict(',
        'before_train_epoch:',
        'System environment:',
        'Exp name',
    ):
        assert text in log.read_text() and text not in printed


def test_a_short_training_prints_fewer_than_a_hundred_lines(printed_and_logged):
    printed, _ = printed_and_logged
    assert len(printed.splitlines()) < 100
