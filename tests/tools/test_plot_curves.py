"""``tools/plot_curves.py`` on the logs of trainings."""

import json

import pytest
from helpers import run_tool, tool_error
from PIL import Image


@pytest.fixture
def runs(tmp_path):
    """Work dirs of two trainings."""
    for name, rate in (('one', 0.1), ('two', 0.2)):
        log = tmp_path / name / '20260101_000000' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        records = [dict(loss=1 / i, lr=rate, iter=i, step=i) for i in range(1, 60)]
        records.append(dict(mIoU=50 * rate, step=59))
        log.write_text('\n'.join(map(json.dumps, records)))
    return [tmp_path / 'one', tmp_path / 'two']


def test_one_run_is_drawn_into_its_folder(runs, capsys):
    run_tool('plot_curves', runs[0])
    assert Image.open(runs[0] / 'curves.png').format == 'PNG'
    assert capsys.readouterr().out.strip() == str(runs[0] / 'curves.png')


def test_several_runs_are_drawn_side_by_side(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_tool('plot_curves', *runs)
    assert Image.open('curves.png').format == 'PNG'


def test_keys_and_format_are_free(runs, tmp_path):
    run_tool('plot_curves', *runs, '--keys', 'mIoU', '-o', tmp_path / 'new' / 'metric.svg')
    picture = (tmp_path / 'new' / 'metric.svg').read_text()
    assert '<!-- mIoU -->' in picture and '<!-- two -->' in picture and '<!-- lr -->' not in picture


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['gone'], ['run not found: gone']),
        (['.'], ['holds no scalars', 'LocalVisBackend']),
        (['one', '--keys', 'mIou'], ['mIou', 'did you mean mIoU']),
        (['one', '-o', 'curves.docx'], ['curves.docx', '.png']),
        (['one', '-o', 'curves.pgf'], ['curves.pgf', '.png']),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_one_message(arguments, words, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs[0].parent)
    message = tool_error(capsys, 'plot_curves', *arguments)
    assert all(word in message for word in words), message
