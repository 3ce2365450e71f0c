"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = '.partial'  # what a file is called until it is whole


@contextmanager
def aside(path: Path, suffix: str = '') -> Iterator[Path]:
    """Lend a name beside a file or folder, under which it can be written.

    Whatever has the name before or afterwards is removed.

    Args:
        path: What is to be written.
        suffix: The end of the name, for writers and readers that look at it.

    Yields:
        The name.
    """
    partial = path.with_name(path.name + PARTIAL + suffix)
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def replacing(path: Path, suffix: str = '') -> Iterator[Path]:
    """Lend a name as :func:`aside`, and move what is written under it to its place.

    After an error in the block, what was in its place is as it was.
    """
    with aside(path, suffix) as partial:
        yield partial
        if partial.is_file():
            _to_disk(partial)
        partial.replace(path)


def replace_file(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def check_regular(path: str | Path) -> None:
    """Refuse a pipe or a device, which would never end.

    Raises:
        OSError: It is one.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f'{path} is no regular file')


def unique_name(name: str, taken: set[str]) -> str:
    """A name that is not taken, and takes it: files of several folders may share theirs."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f'{name}_{number}'
    taken.add(unique)
    return unique


def _to_disk(path: Path) -> None:
    with path.open('rb') as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
