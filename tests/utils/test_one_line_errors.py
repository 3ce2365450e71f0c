"""Errors in one line, from this process and from those that load data."""

import pytest
from torch.utils.data import DataLoader

from mmpoolformer.utils.errors import (
    DataError,
    first_line,
    last_line,
    one_line,
    printed,
    short,
)


@pytest.mark.parametrize(
    'message, line',
    [
        ('no file', 'no file'),
        ('\n  no file \nat line 1', 'no file'),
        ('\x1b[31mno\x1b[0m file', 'no file'),
        ('', ''),
        (300 * 'x', 200 * 'x'),
    ],
)
def test_the_first_line(message, line):
    assert first_line(ValueError(message)) == line
    assert one_line(ValueError(message)) == f'ValueError: {line}'


class Broken:
    """A data set without a readable sample."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('error', [DataError('0.jpg: cut off'), FileNotFoundError('0.jpg: gone')])
def test_the_last_line_is_the_message_wherever_it_was_raised(error, workers):
    with pytest.raises(type(error)) as raised:
        next(iter(DataLoader(Broken(error), num_workers=workers)))
    assert last_line(raised.value) == str(error)


def test_an_error_without_a_message_has_a_name():
    assert last_line(KeyError()) == 'KeyError'


def test_what_a_file_says_is_printable():
    message = printed(f'error: a\x1b]0;b\nand \x07{"c" * 10_000}')
    assert message.startswith('error: a\\x1b]0;b\nand \\x07c') and len(message) < 6000


@pytest.mark.parametrize(
    'value, text',
    [('a\x1b', r"'a\x1b'"), (1.5, '1.5'), (10**5000, 'a number without end'), ([1], 'list')],
    ids=['text', 'number', 'digits', 'list'],
)
def test_values_of_files_are_short(value, text):
    assert short(value) == text
