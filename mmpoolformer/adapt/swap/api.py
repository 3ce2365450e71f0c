"""Put PoolFormer into an existing mmdet or mmseg config.

A pyramid of features is read by the neck, or without one by the heads. What they read is
found by running the backbone that is there; the stages of PoolFormer that fit take its place.
"""

from __future__ import annotations

from typing import NamedTuple

from mmengine.config import Config

from ...archs import Arch, resolve_arch
from ..edit import Change, Edit
from . import images, recipe
from .checks import check_arguments, check_input_size, find_model, mixers_of, scope_of
from .nested import find_slot, rewire_outer
from .rewiring import rewire
from .strides import match_stages, strides_of


class Swapped(NamedTuple):
    """A config with another backbone.

    Attributes:
        cfg: The new config.
        changes: What was changed, in the order of the model and then of the schedule.
    """

    cfg: Config
    changes: list[Change]


def swap(
    cfg: Config,
    arch: str | dict | Arch = 's12',
    checkpoint: str | None = 'official',
    keep_optimizer: bool = False,
    **backbone_kwargs,
) -> Swapped:
    """Replace the backbone and explain it; arguments and errors are :func:`swap_backbone`'s.

    Returns:
        The new config and its changes.
    """
    if not isinstance(cfg, Config):
        raise TypeError(
            f'cfg must be a mmengine Config, got {type(cfg).__name__}: use Config.fromfile(PATH)'
        )
    resolved = resolve_arch(arch)
    mixers = mixers_of(resolved, backbone_kwargs.get('token_mixers'))
    check_arguments(arch, checkpoint, mixers, backbone_kwargs)
    edit = Edit(cfg)
    scope, at = scope_of(edit.cfg), find_model(edit.cfg)
    segments, slot = scope == 'mmseg', find_slot(edit, at)
    strides = strides_of(edit.get(slot), scope, edit.cfg)
    if slot == (*at, 'backbone'):
        stages = match_stages(strides, scope)
        deeper = len(strides) - len(stages)
        stages = rewire(edit, at, stages, resolved.embed_dims, segments, deeper)
    else:
        stages = rewire_outer(edit, at, strides, resolved.embed_dims)
    check_input_size(mixers, backbone_kwargs)
    pools = 'token_mixers' not in backbone_kwargs and set(mixers) == {'pooling'}
    recipe.replace_backbone(edit, slot, arch, stages, checkpoint, pools, backbone_kwargs)
    recipe.drop_old_weights(edit, at)
    if checkpoint is not None:
        images.match_preprocessing(edit, at)
    if segments:
        images.round_test_sizes(edit)
    recipe.import_plugin(edit)
    if not keep_optimizer:
        recipe.set_optimizer(edit, at, segments)
    return Swapped(edit.cfg, edit.changes)


def swap_backbone(
    cfg: Config,
    arch: str | dict | Arch = 's12',
    checkpoint: str | None = 'official',
    keep_optimizer: bool = False,
    **backbone_kwargs,
) -> Config:
    """Replace the backbone of a detector or segmentor by PoolFormer or another MetaFormer.

    Adapted are: ``out_indices``, so that the neck or the heads get the strides they read and
    no stage is idle; the ``in_channels`` of necks and heads; what belongs to the old weights
    (their normalisation of images, ``pretrained``, ``load_from``); ``custom_imports``; and
    the optimizer, to the paper's AdamW recipe for this kind of model. DETR-like models and
    RTMDet, for which the paper has none, keep their own AdamW, and so do configs with learning
    rates by layer, which are counted over the new layers. Everything else stays.

    Of a model of images and texts (GLIP, Grounding DINO) a warning says that its weights went.

    Args:
        cfg: A complete config. It is not changed.
        arch: See :class:`MetaFormer`.
        checkpoint: Weights to start from: ``'official'`` for the ImageNet weights of the
            official repository, ``'official:in21k'`` or another of
            :data:`~mmpoolformer.archs.VARIANTS` for ConvFormer and CAFormer, a path or URL, or
            ``None`` for random ones.
        keep_optimizer: Leave ``optim_wrapper`` and ``param_scheduler`` as they are.
        backbone_kwargs: More arguments for :class:`MetaFormer`.

    Returns:
        A new config.

    Raises:
        SwapError: The model cannot take a pyramid backbone, or the config does not say how its
            images are normalised; says why and what can.
        LaunchError: ``custom_imports`` is not what mmengine takes.
        ValueError: Unknown architecture, or no official weights for it with these mixers.
        TypeError: ``cfg`` is no config, or the backbone has no such argument.
    """
    return swap(cfg, arch, checkpoint, keep_optimizer, **backbone_kwargs).cfg


def swap_changes(
    cfg: Config,
    arch: str | dict | Arch = 's12',
    checkpoint: str | None = 'official',
    keep_optimizer: bool = False,
    **backbone_kwargs,
) -> list[Change]:
    """Explain what :func:`swap_backbone` changes; the arguments and errors are the same.

    Returns:
        The changes, in the order of the model and then of the schedule.
    """
    return swap(cfg, arch, checkpoint, keep_optimizer, **backbone_kwargs).changes
