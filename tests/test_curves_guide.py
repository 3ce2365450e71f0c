"""``docs/guides/curves.md``: its commands and its lines for configs."""

import json
import re
import shlex
import sys

import pytest
from helpers import ROOT, run_tool, shell_commands, tool_error, write_tiny_config

GUIDE = (ROOT / 'docs' / 'guides' / 'curves.md').read_text()
COMMANDS = shell_commands(GUIDE)
TENSORBOARD, WANDB = re.findall(r'```python\n(visualizer = .*)\n```', GUIDE)


@pytest.fixture
def work_dirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('first', 'second'):
        log = tmp_path / 'work_dirs' / name / '20260101_000000' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        records = dict(loss=1.0, lr=0.1, iter=1, step=1), dict(mIoU=50, step=1)
        log.write_text('\n'.join(map(json.dumps, records)))
    return tmp_path / 'work_dirs'


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_run(command, work_dirs, capsys):
    python, script, *args = shlex.split(command)
    assert python == 'python' and script.startswith('tools/')
    run_tool(script.removeprefix('tools/').removesuffix('.py'), *args)
    out = capsys.readouterr().out
    if 'curves' in script:
        assert (work_dirs.parent / out.strip()).is_file()
    if '1.812 G' in GUIDE and '--backbone-only' in args:
        assert '1.812 G' in out


def train_with(line, name, digits_root, folder):
    config = write_tiny_config(folder, 'by_iteration', digits_root)
    config.write_text(f'{config.read_text()}\n{line}\n')
    # mmengine keeps a visualizer, and its folder, per name.
    return 'train', config, '--work-dir', folder / 'run', '--cfg-options', f'visualizer.name={name}'


def test_tensorboard_gets_losses_and_metrics(digits_root, tmp_path):
    pytest.importorskip('torch.utils.tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_tool(*train_with(TENSORBOARD, 'tensorboard', digits_root, tmp_path))
    (events,) = tmp_path.glob('run/*/vis_data/events.out.*')
    log = EventAccumulator(str(events)).Reload()
    assert [event.step for event in log.Scalars('loss')] == list(range(1, 9))
    assert [event.step for event in log.Scalars('mIoU')] == [4, 8]
    assert (tmp_path / 'run' / 'curves.png').is_file()


@pytest.mark.parametrize(
    'line, module, package',
    [(TENSORBOARD, 'torch.utils.tensorboard', 'tensorboard'), (WANDB, 'wandb', 'wandb')],
    ids=['tensorboard', 'wandb'],
)
def test_a_missing_package_is_named(
    line, module, package, digits_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    command = train_with(line, f'without-{package}', digits_root, tmp_path)
    message = tool_error(capsys, *command)
    assert 'pip install' in message and package in message
