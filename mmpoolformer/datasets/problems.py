"""What a check of a data set finds."""

from __future__ import annotations

from typing import NamedTuple

ERROR, WARNING = 'error', 'warning'


class Problem(NamedTuple):
    """Something wrong with one file or one annotation.

    Attributes:
        level: ``'error'`` or ``'warning'``.
        kind: What all problems of its kind are called.
        where: The file, and the annotation in it.
        detail: What was found.
    """

    level: str
    kind: str
    where: str
    detail: str
