"""How much a checkpoint holds when it is walked through, compared with the size of its file.

What a file names again and again is small in the file and in memory, and becomes large for
whoever copies it, prints it or writes it: a list of a list of a list, a tensor of a thousand names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .layouts import CheckpointError

DEEPEST = 64  # lists in lists
# Tensors may share their storage, as tied weights do.
MOST_SHARED = 4
FREE_ENTRIES, FREE_BYTES = 2_000_000, 64 * 2**20


def check_extent(content: Any, path: Path) -> None:
    """Refuse what is out of proportion, counting everything as often as it is named.

    Args:
        content: What was read.
        path: The file.

    Raises:
        CheckpointError: It is too deep, has more entries than the file has bytes, or more than
            four times its bytes; small files have some of each for free.
    """
    size = path.stat().st_size
    entries, held = 0, 0
    todo = [iter((content,))]
    while todo:
        node = next(todo[-1], todo)
        if node is todo:  # none is left
            todo.pop()
            continue
        entries += 1
        held += _bytes_of(node)
        if isinstance(node, (dict, list, tuple, set)):
            todo.append(_children(node))
        if len(todo) > DEEPEST or entries > FREE_ENTRIES + size:
            raise CheckpointError(f'{path} has lists in lists without end')
        if held > FREE_BYTES + MOST_SHARED * size:
            raise CheckpointError(
                f'{path} names the same numbers again and again, {held} bytes in a file of {size}'
            )


def _children(node: Any) -> Iterator:
    return iter(node.values() if isinstance(node, dict) else node)


def _bytes_of(node: Any) -> int:
    """Bytes that a copy of one entry takes, or its text."""
    if isinstance(node, Tensor):
        return node.numel() * node.element_size()
    if isinstance(node, HistoryBuffer):
        return sum(array.nbytes for array in node.data)
    if isinstance(node, np.ndarray):
        return node.nbytes
    return len(node) if isinstance(node, (str, bytes)) else 0
