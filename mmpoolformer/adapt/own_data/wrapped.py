"""Data sets inside of their wrappers in a config."""

from __future__ import annotations

from collections.abc import Iterator

from ...datasets.fit import SPLITS
from ...datasets.readers import is_leaf
from ...utils.config_tree import type_of, walk
from ..edit import Edit
from .errors import OwnDataError
from .splits import Data, Part

REASON = 'your own data'


def leaves(edit: Edit, split: str) -> list[tuple[tuple, dict]]:
    """The data sets of a split that read files, with their paths."""
    root = (f'{split}_dataloader', 'dataset')
    return [(path, node) for path, node in walk(edit.get(root), root) if is_leaf(node)]


def only_leaf(edit: Edit, split: str) -> tuple[tuple, dict]:
    """The place for one's own data set, and the data set whose pipeline it takes over.

    Several that are joined are replaced by one, and none is repeated, as the length of the training
    is counted in images; other wrappers stay.

    Raises:
        OwnDataError: The split has no data set with a pipeline.
    """
    found = leaves(edit, split)
    if not found:
        raise OwnDataError(f'{split}_dataloader has no data set with a pipeline')
    root = (f'{split}_dataloader', 'dataset')
    replaced = [
        path
        for path, node in walk(edit.get(root), root)
        if 'datasets' in node or type_of(node) == 'RepeatDataset'
    ]
    return (replaced[0] if replaced else found[0][0]), found[0][1]


def own_parts(edit: Edit, data: Data) -> Iterator[tuple[Part, tuple, dict]]:
    """The part of own data for each data set of a config, with its place and what it was."""
    for split in SPLITS:
        if edit.cfg.get(f'{split}_dataloader'):
            yield data.train if split == 'train' else data.val, *only_leaf(edit, split)
