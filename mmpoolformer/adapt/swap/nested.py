"""Backbones around another one: PoolFormer takes the inner one's place.

The context path of a real-time segmentor is a pyramid under modules that fuse its maps. The
modules, and the path of full resolution beside them, stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...utils.config_tree import type_of
from ...utils.errors import join
from ..edit import Edit
from .rules import NEAREST, STRIDES, SwapError

INNER = 'backbone_cfg'


def find_slot(edit: Edit, at: tuple) -> tuple:
    """Path of the backbone to replace, which some backbones have inside of them.

    Args:
        edit: The config.
        at: Path of the model that has the backbone.
    """
    outer = edit.get((*at, 'backbone'))
    inside = type_of(outer) in WIDEN and outer.get(INNER)
    return (*at, 'backbone', INNER) if inside else (*at, 'backbone')


def rewire_outer(edit: Edit, at: tuple, strides: tuple[int, ...], dims: Sequence[int]) -> list[int]:
    """Adapt the modules around the inner backbone, and the heads that read theirs.

    Args:
        edit: The config.
        at: Path of the model that has the backbone.
        strides: Of the maps that the inner backbone returns.
        dims: Channels of all stages.

    Returns:
        The stages that the new backbone must return.

    Raises:
        SwapError: The modules read other strides than PoolFormer has.
    """
    outer = edit.get((*at, 'backbone'))
    if not set(strides) <= set(STRIDES) or list(strides) != sorted(set(strides)):
        raise SwapError(
            f'{type_of(outer)} reads maps of stride {join(strides)}; PoolFormer has '
            f'{join(STRIDES)}',
            NEAREST['mmseg'],
        )
    WIDEN[type_of(outer)](edit, at, dims)
    return [STRIDES.index(stride) for stride in strides]


def _widen_bisenet(edit: Edit, at: tuple, dims: Sequence[int]) -> None:
    # Both paths have half of what is fused, which is as wide as the map of stride 16.
    half, path = dims[2] // 2, (*at, 'backbone')
    spatial = edit.get(path).get('spatial_channels', (64, 64, 64, 128))
    edit.set((*path, 'context_channels'), (half, dims[2], dims[3]), 'the stages it reads')
    reason = 'half of what is fused, as before'
    edit.set((*path, 'spatial_channels'), (*spatial[:-1], half), reason)
    _set_heads(edit, at, {1: half, 2: half}, 'the width of the context path')
    reason = 'BiSeNetV1 asks for a map of stride 4 that it does not use'
    edit.set(('find_unused_parameters',), True, reason)


def _widen_stdc(edit: Edit, at: tuple, dims: Sequence[int]) -> None:
    path = (*at, 'backbone')
    width = edit.get(path).get('out_channels', 128)
    edit.set((*path, 'last_in_channels'), (dims[3], dims[2]), 'the stages it reads')
    reason = 'the map of stride 8 and the context path'
    edit.set((*path, 'ffm_cfg', 'in_channels'), dims[1] + width, reason)
    _set_heads(edit, at, {0: dims[1]}, 'the map of stride 8')


def _set_heads(edit: Edit, at: tuple, widths: dict[int, int], reason: str) -> None:
    """Give the heads that read these outputs of the outer backbone their new widths."""
    heads = edit.get(at).get('auxiliary_head') or []
    listed = isinstance(heads, (list, tuple))
    for k, head in enumerate(heads if listed else [heads]):
        path = (*at, 'auxiliary_head', k) if listed else (*at, 'auxiliary_head')
        if head.get('in_index') in widths:
            edit.set((*path, 'in_channels'), widths[head['in_index']], reason)


# Per backbone, how its modules take the widths of the inner one.
WIDEN = {'BiSeNetV1': _widen_bisenet, 'STDCContextPathNet': _widen_stdc}
