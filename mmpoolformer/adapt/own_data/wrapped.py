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
    is counted in images (see :func:`repeats`); other wrappers stay.

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


def repeats(loader: dict) -> int:
    """How often an epoch of a data loader's data set sees an image of the first that is joined."""
    times, node = 1, loader['dataset']
    while node.get('dataset') or node.get('datasets'):
        times *= node.get('times', 1) if type_of(node) == 'RepeatDataset' else 1
        node = node.get('dataset') or node['datasets'][0]
    return times


def watch_metric(edit: Edit, start: str, metric: str) -> None:
    """Let hooks and schedules that watch a metric watch one that the new evaluator has.

    Args:
        edit: The config that is changed.
        start: How the names of the evaluator's metrics begin.
        metric: The one that is watched in the place of others.
    """
    for root in ('default_hooks', 'custom_hooks', 'param_scheduler'):
        for at, node in list(walk(edit.cfg.get(root) or {}, (root,))):
            for key in ('save_best', 'monitor'):
                watched = node.get(key)
                names = watched if isinstance(watched, (list, tuple)) else [watched]
                foreign = [n for n in names if isinstance(n, str) and not n.startswith(start)]
                if foreign and foreign not in (['auto'], ['loss']):
                    edit.set((*at, key), metric, REASON)


def own_parts(edit: Edit, data: Data) -> Iterator[tuple[Part, tuple, dict]]:
    """The part of own data for each data set of a config, with its place and what it was."""
    for split in SPLITS:
        if edit.cfg.get(f'{split}_dataloader'):
            yield data.train if split == 'train' else data.val, *only_leaf(edit, split)
