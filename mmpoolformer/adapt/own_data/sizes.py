"""Smaller or larger images than those of the config."""

from __future__ import annotations

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
FIXED = ('img_size', 'input_size')  # of models that take one size alone
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
    for at, node in walk(edit.get(('model',)), ('model',)):
        for key in set(FIXED).intersection(node):
            raise OwnDataError(
                f'image_size: {".".join((*map(str, at), key))}={node[key]!r} is made for one size; '
                "keep the config's, or put in another backbone too"
            )
    ratio = image_size / _usual_size(edit)
    reason = f'all sizes in proportion to {image_size}'
    for place in PLACES:
        for at, node in walk(edit.find(place), place):
            for key in set(SIDES).intersection(node):
                # Windows have their mates; elsewhere these words are about other things.
                if key in ('stride', 'max_size') and not {'crop_size', 'scales'} & set(node):
                    continue
                edit.set((*at, key), _in_proportion(node[key], ratio), reason)


def _usual_size(edit: Edit) -> int:
    """The longer side that the config is for."""
    found = edit.find(('model', 'data_preprocessor')).get('size')
    for split in () if found else ('val', 'test', 'train'):
        root = (f'{split}_dataloader',)
        resized = [n for _, n in walk(edit.find(root), root) if type_of(n).endswith('Resize')]
        found = found or next((n['scale'] for n in resized if n.get('scale')), None)
    if not found:
        raise OwnDataError('image_size: the config resizes no images that it evaluates')
    return int(np.max(found))


def _in_proportion(value: Any, ratio: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_in_proportion(each, ratio) for each in value)
    if not is_integer(value):
        return value
    if value < 0:  # a border of half a side
        return -_in_proportion(-2 * value, ratio) // 2
    return max(MULTIPLE, MULTIPLE * round(value * ratio / MULTIPLE))
