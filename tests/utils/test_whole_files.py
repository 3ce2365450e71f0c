"""Files and folders that are written whole or not at all."""

import pytest

from mmpoolformer.utils.files import PARTIAL, aside, replace_file, replacing


def test_a_file_is_replaced(tmp_path):
    (tmp_path / 'own.txt').write_text('old')
    replace_file(tmp_path / 'own.txt', 'new')
    assert [path.name for path in tmp_path.iterdir()] == ['own.txt']
    assert (tmp_path / 'own.txt').read_text() == 'new'


def test_after_an_error_everything_is_as_it_was(tmp_path):
    (tmp_path / 'own.txt').write_text('old')
    with pytest.raises(OSError, match='full'), replacing(tmp_path / 'own.txt') as partial:
        partial.write_text('ne')
        raise OSError('the disk is full')
    assert [path.name for path in tmp_path.iterdir()] == ['own.txt']
    assert (tmp_path / 'own.txt').read_text() == 'old'


def test_a_folder_starts_empty_and_gets_its_name_when_it_is_whole(tmp_path):
    stale = tmp_path / f'data{PARTIAL}'
    stale.mkdir()
    (stale / 'from_before').touch()
    with replacing(tmp_path / 'data') as partial:
        partial.mkdir()
        (partial / 'image').touch()
        assert not (tmp_path / 'data').exists()
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['image']
    assert not stale.exists()


def test_a_name_beside_keeps_the_end_that_it_is_asked_for(tmp_path):
    with aside(tmp_path / 'own.py', suffix='.py') as partial:
        partial.write_text('')
        assert partial.parent == tmp_path and partial.suffix == '.py'
    assert not list(tmp_path.iterdir())
