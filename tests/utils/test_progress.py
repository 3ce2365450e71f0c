"""Progress of long work, with and without a terminal."""

import sys

import pytest

from mmpoolformer.utils import progress


def test_without_a_terminal_there_are_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, 'SECONDS', 0)
    assert list(progress.track(iter('abc'), 3, 'images')) == list('abc')
    assert capsys.readouterr().err.splitlines()[:3] == [f'images: {i} of 3' for i in (1, 2, 3)]


def test_the_last_line_says_how_many_there_were(capsys):
    list(progress.track(iter('ab'), 3, 'images'))
    assert capsys.readouterr().err == 'images: 2 of 3\n'


@pytest.mark.parametrize('count', [0, 3])
def test_a_terminal_gets_a_bar(count, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert list(progress.track(iter(range(count)), count, 'images')) == list(range(count))
    assert f'{count}/{count}' in capsys.readouterr().err


def test_titles_are_no_markup_and_no_orders(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    for title in ('[/x].mp4', '\x1b]0;owned'):
        assert list(progress.track(iter('a'), 1, title)) == ['a']
    err = capsys.readouterr().err
    assert '[/x].mp4' in err and '\x1b]0' not in err
