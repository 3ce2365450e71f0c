"""The class counts of a model's heads, and what losses have per class."""

from __future__ import annotations

from ...datasets.fit import STUFF, THINGS, class_counts, panoptic_counts
from ...utils.config_tree import type_of, walk
from ..edit import Edit
from .errors import OwnDataError

INSTANCES = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
REASON = 'the classes of your data'


def set_class_counts(edit: Edit, count: int) -> None:
    """Build every head for ``count`` classes.

    Raises:
        OwnDataError: The model's classes are no list of classes.
    """
    model = edit.cfg.get('model') or {}
    _refuse(model)
    before = edit.cfg.to_dict()['model']
    for path, node in list(walk(model, ('model',))):
        if THINGS in node:
            edit.set((*path, THINGS), count, REASON)
        weights = node.get('class_weight')
        if isinstance(weights, (list, tuple)) and len(weights) > 1:
            # One per class, and as a rule one more for «no object».
            old = _count_near(before, path)
            rest = list(weights[old:]) if old is not None else []
            edit.set((*path, 'class_weight'), [weights[0]] * count + rest, REASON)
    for found in list(class_counts(model)):
        path = tuple(int(key) if key.isdigit() else key for key in found.key.split('.'))
        edit.set(path, count, REASON)


def _count_near(model: dict, path: tuple) -> int | None:
    """The class count of the head that a loss belongs to."""
    counts = {found.key: found.value for found in class_counts(model)}
    for depth in range(len(path), 0, -1):
        key = '.'.join(map(str, (*path[:depth], 'num_classes')))
        if key in counts:
            return counts[key]
    panoptic = panoptic_counts(model)
    return panoptic[0].value if panoptic else None


def _refuse(model: dict) -> None:
    for _, node in walk(model):
        kind = type_of(node)
        if node.get(STUFF):
            raise OwnDataError(
                f'{kind} tells stuff from things, and needs panoptic annotations: start from an '
                f'instance segmentation config, such as {INSTANCES}'
            )
        if 'language_model' in node:
            raise OwnDataError(
                f'{kind} reads class names as text, and is fine-tuned by recipes of its own: start '
                'from mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
            )
        if 'semi_train_cfg' in node:
            raise OwnDataError(
                f'{kind} trains on images without labels, too: put its detector alone into a config'
            )
        if 'tracker' in node:
            raise OwnDataError(
                f'{kind} is a tracker: train its detector alone, and put that into the tracker'
            )
