"""Smaller or larger images than those of the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...archs import is_integer
from ...utils.config_tree import type_of, walk
from ..edit import Edit
from .errors import OwnDataError

MULTIPLE = 32  # of the sides, as the backbone's last stage has that stride
# What transforms, preprocessors, hooks and evaluation by windows call the sides of images.
SIDES = ('scale', 'scales', 'img_scale', 'img_scales', 'crop_size', 'size', 'max_size',
         'random_size_range', 'border', 'stride')  # fmt: skip
# Those that mean it only beside another one.
MATES = dict(stride={'crop_size'}, max_size={'scale', 'scales'})
# What models have that are made for one size: transformers, anchors of SSD and YOLACT, PSANet.
FIXED = ('img_size', 'input_size', 'min_sizes', 'max_sizes', 'centers', 'mask_size')
PLACES = (
    ('train_dataloader',), ('val_dataloader',), ('test_dataloader',), ('custom_hooks',),
    ('tta_pipeline',), ('model', 'data_preprocessor'), ('model', 'test_cfg'),
    ('data_preprocessor',),
)  # fmt: skip


def set_image_size(edit: Edit, image_size: int | None) -> None:
    """Change every size of images in proportion.

    Args:
        edit: The config that is changed.
        image_size: Longer side of the crops that a segmentor trains on, or of the images that a
            detector is evaluated on, in pixels; ``None`` leaves all as it is.

    Raises:
        OwnDataError: It is no multiple of 32, the config has no such size, or its model one alone.
    """
    if image_size is None:
        return
    if not is_integer(image_size) or image_size <= 0 or image_size % MULTIPLE:
        raise OwnDataError(f'image_size={image_size!r}: give a multiple of {MULTIPLE}')
    _refuse_fixed_sizes(edit)
    ratio = image_size / _usual_size(edit)
    reason = f'all sizes in proportion to {image_size}'
    for place in PLACES:
        for at, node in walk(edit.find(place), place):
            for key in set(SIDES).intersection(node):
                if MATES.get(key, {key}) & set(node):
                    edit.set((*at, key), _in_proportion(node[key], ratio), reason)
    _resize_augmented(edit, reason)


def _refuse_fixed_sizes(edit: Edit) -> None:
    for at, node in walk(edit.get(('model',)), ('model',)):
        for key in FIXED:
            is_of_masks = key == 'mask_size' and 'train_cfg' in at  # of regions, not of images
            if node.get(key) is not None and not is_of_masks:
                raise OwnDataError(
                    f'image_size: {".".join((*map(str, at), key))}={node[key]!r} is made for one '
                    "size; keep the config's, or put in another backbone too"
                )


def _usual_size(edit: Edit) -> int:
    """The longer side that the config is for."""
    if edit.cfg.default_scope == 'mmseg':
        sizes = [edit.find(('model', 'data_preprocessor')).get('size')]
        sizes += [node.get('crop_size') for node in _steps(edit, 'train')]
    else:
        sizes = [
            node.get('max_size') or node.get('scale')
            for split in ('val', 'test')
            for node in _steps(edit, split)
            if 'Resize' in type_of(node)
        ]
    found = next(filter(None, sizes), None)
    if found is None:
        raise OwnDataError(
            'image_size: the config says no size of the crops that a segmentor trains on, or of '
            'the images that a detector is evaluated on: change its pipelines by hand'
        )
    return int(np.max(found))


def _steps(edit: Edit, split: str) -> Iterator[dict]:
    root = (f'{split}_dataloader',)
    return (node for _, node in walk(edit.find(root), root))


def _resize_augmented(edit: Edit, reason: str) -> None:
    """Factors of an image's own size, as mmseg's augmented tests have them, become sizes."""
    tested = [n['scale'] for n in _steps(edit, 'test') if type_of(n) == 'Resize' and 'scale' in n]
    for at, node in list(walk(edit.find(('tta_pipeline',)), ('tta_pipeline',))):
        factor = node.get('scale_factor')
        if type_of(node) != 'Resize' or not factor:
            continue
        if not tested:
            raise OwnDataError(
                f'image_size: {".".join(map(str, at))} resizes by {factor}, of images that '
                'the test does not resize: give it a scale'
            )
        new = {key: value for key, value in node.items() if key != 'scale_factor'}
        edit.set(at, dict(new, scale=_in_proportion(tested[0], factor)), reason)


def _in_proportion(value: Any, ratio: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_in_proportion(each, ratio) for each in value)
    if not is_integer(value) or value in (0, 1):  # no side, but none at all, or a share
        return value
    if value < 0:  # a border of half a side
        return -_in_proportion(-2 * value, ratio) // 2
    return max(MULTIPLE, MULTIPLE * round(value * ratio / MULTIPLE))
