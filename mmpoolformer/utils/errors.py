"""The errors of several rooms, and their messages in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 200  # characters of one line
LONGEST_LINE = 5000
SHOWN = 8  # of many values


class LaunchError(Exception):
    """A problem with the command line, the config or the files it names."""


class DataError(Exception):
    """A sample of the data set cannot be loaded; names its file."""


def first_line(error: object) -> str:
    """The first line of an error's message, shortened and without colours."""
    line = (str(error).strip().splitlines() or [''])[0].rstrip()
    return printable(re.sub(r'\x1b\[[0-9;]*m', '', line)[:LONGEST])


def printable(text: str) -> str:
    """A text without control characters, as what a file says must not talk to the terminal."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printed(message: str) -> str:
    """A message as it may go to a terminal, whatever a file made it say."""
    lines = [line[:LONGEST_LINE] + '…' * (len(line) > LONGEST_LINE) for line in message.split('\n')]
    return '\n'.join(map(printable, lines))


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    return f'{type(error).__name__}: {first_line(error)}'


def last_line(error: Exception) -> str:
    """The message of an error, which for that of a worker process comes after its trace."""
    kind = type(error)
    line = (str(error).strip().splitlines() or [kind.__name__])[-1].strip()
    module = '' if kind.__module__ == 'builtins' else f'{kind.__module__}.'
    return line.removeprefix(f'{module}{kind.__qualname__}: ')


def join(values: Iterable) -> str:
    """Values as a message lists them."""
    return ', '.join(map(str, values))


def some(names: Iterable) -> str:
    """The first of many values, and how many there are."""
    names = list(names)
    more = f', … ({len(names)} in all)' if len(names) > SHOWN else ''
    return join(names[:SHOWN]) + more


def short(value: object) -> str:
    """A value that a file gives, in a message: numbers and texts shortened, of others the type."""
    if isinstance(value, int) and abs(value) >= 10**40:  # Python prints no more than 4300 digits
        return 'a number without end'
    return ascii(value)[:50] if isinstance(value, (int, float, str)) else type(value).__name__
