"""The new backbone, and what goes with it: the plugin, the optimizer."""

from __future__ import annotations

import warnings

from ...archs import ARCHS, NUM_STAGES, Arch, official_variant, official_weights
from ...registry import custom_modules
from ...utils.config_tree import has, type_of, walk
from ...utils.errors import join
from ..edit import Edit
from ..schedules import scale_rates
from .nested import INNER
from .rules import BACKBONE_CONSTRUCTORS, LAYER_DECAY, MULTIMODAL, RECIPES, STRIDES

# Parts of Swin and ConvNeXt that optimizers know by name.
OLD_EMBEDDINGS = ('absolute_pos_embed', 'relative_position_bias_table')
# What of a MetaFormer has no weight decay. mmengine takes the longest key that is part of a name,
# so that these go before 'backbone'.
NORMS_AND_SCALES = (
    *('.norm1.weight', '.norm1.bias', '.norm2.weight', '.norm2.bias', 'layer_scale', 'res_scale'),
    *(f'backbone.network.{stage}.norm' for stage in (1, 3, 5)),
)


def replace_backbone(
    edit: Edit,
    slot: tuple,
    arch: str | dict | Arch,
    stages: list[int],
    checkpoint: str | None,
    pools: bool,
    backbone_kwargs: dict,
) -> None:
    """Put the new backbone in the old one's place.

    Args:
        edit: The config.
        slot: Path of the old one.
        arch: As the user gave it.
        stages: Stages that it returns.
        checkpoint: As the user gave it.
        pools: Whether it is a PoolFormer: every mixer is pooling, and not by an argument.
        backbone_kwargs: More arguments for it.
    """
    old, by_name = edit.get(slot), isinstance(arch, str)
    kind = 'PoolFormer' if pools and (not by_name or arch in ARCHS) else 'MetaFormer'
    if not by_name:
        arch = dict(arch) if isinstance(arch, dict) else arch._asdict()
    new: dict = dict(type=kind, arch=arch)
    if stages != list(range(NUM_STAGES)):
        new['out_indices'] = tuple(stages)
    for key in ('in_channels', 'with_cp'):
        if old.get(key) not in (None, False, 3):
            new[key] = old[key]
    new.update(backbone_kwargs)
    if checkpoint is not None:
        variant = official_variant(checkpoint)
        weights = checkpoint if variant is None else official_weights(arch, variant)
        new['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    strides = join(STRIDES[stage] for stage in stages)
    reason = f'maps of stride {strides}'
    if INNER in old:  # a backbone around a ResNet, whose layers it calls one by one
        reason += f"; {type_of(old)}'s own branches go with it"
    edit.set(slot, new, reason)


def drop_old_weights(edit: Edit, at: tuple) -> None:
    """Load nothing that was trained with the old backbone."""
    for depth in range(1, len(at) + 1):
        node = edit.get(at[:depth])
        for key in ('pretrained', 'init_cfg'):
            value = node.get(key)
            if value and (key == 'pretrained' or type_of(value) == 'Pretrained'):
                edit.set((*at[:depth], key), None, 'weights of the old backbone')
    if edit.cfg.get('load_from'):
        edit.set(('load_from',), None, 'weights of the old model')
    kind = type_of(edit.get(at))
    if kind in MULTIMODAL:
        warnings.warn(
            f'{kind} reads texts too, and its image and text branches were trained together: with '
            'another backbone only training from scratch makes sense',
            stacklevel=4,
        )


def import_plugin(edit: Edit) -> None:
    """Let the config import this package, and no longer what served the old backbone alone."""
    imports = custom_modules(edit.cfg)
    types = (node.get('type') for _, node in walk(edit.cfg.to_dict()))
    if 'mmpretrain' not in {name.split('.')[0] for name in types if isinstance(name, str)}:
        imports = [name for name in imports if name.split('.')[0] != 'mmpretrain']
    if 'mmpoolformer' not in imports:
        imports.append('mmpoolformer')
    may_fail = edit.find(('custom_imports', 'allow_failed_imports')) or False
    new = dict(imports=imports, allow_failed_imports=may_fail)
    edit.set(('custom_imports',), new, 'registers PoolFormer')


def set_optimizer(edit: Edit, at: tuple, segments: bool) -> None:
    """Train by the paper's recipe for this kind of model.

    Learning rates by layer, DETR-like models and RTMDet have an AdamW of their own.
    """
    wrapper = edit.find(('optim_wrapper',))
    old, model = wrapper.get('optimizer'), edit.get(at)
    if not old:
        return
    old_lr = old.get('lr')
    if type_of(old) == 'AdamW':
        if wrapper.get('constructor') in BACKBONE_CONSTRUCTORS:
            _decay_by_layer(edit, wrapper.get('paramwise_cfg') or {})
            return
        if _has_queries(model):
            _spare_norms(edit)
            return
        if type_of(model) == 'RTMDet':
            lr, batch_size = RECIPES['RTMDet']
            reason = "the toolbox's learning rate for RTMDet with ConvNeXt and Swin"
            edit.set(('optim_wrapper', 'optimizer', 'lr'), lr, reason)
            _scale_schedule(edit, lr, batch_size, old_lr)
            return
    has_rois = has(model, 'rpn_head', 'roi_head')
    kind = 'Semantic FPN' if segments else 'Mask R-CNN' if has_rois else 'RetinaNet'
    lr, batch_size = RECIPES[kind]
    reason = f"the paper's recipe for {kind}"
    optimizer = dict(type='AdamW', lr=lr, weight_decay=1e-4)
    edit.set(('optim_wrapper', 'optimizer'), optimizer, reason)
    for key in ('clip_grad', 'paramwise_cfg', 'constructor'):
        if wrapper.get(key) is not None:
            edit.set(('optim_wrapper', key), None, reason)
    _scale_schedule(edit, lr, batch_size, old_lr)


def _decay_by_layer(edit: Edit, old: dict) -> None:
    """Learning rates by layer, with the old rate, over the layers of the new backbone."""
    rate = old.get('decay_rate', old.get('layer_decay_rate'))
    reason = 'counts the layers of the new backbone, with the same rate'
    edit.set(('optim_wrapper', 'constructor'), LAYER_DECAY, reason)
    new = dict(decay_rate=rate, decay_type=old.get('decay_type', 'layer_wise'))
    edit.set(('optim_wrapper', 'paramwise_cfg'), new, reason)


def _spare_norms(edit: Edit) -> None:
    """Norms of the old backbone that have a decay of their own stand for those of the new one."""
    path = ('optim_wrapper', 'paramwise_cfg', 'custom_keys')
    keys = edit.find(path)
    old = [key for key in keys if key.startswith('backbone.stages.') or key in OLD_EMBEDDINGS]
    norms = [key for key in old if key.endswith('norm')]
    if norms:
        new = {key: value for key, value in keys.items() if key not in old}
        new.update({key: dict(keys[norms[0]]) for key in NORMS_AND_SCALES})
        edit.set(path, new, 'names of the new backbone')


def _scale_schedule(edit: Edit, lr: float, batch_size: int, old_lr: float | None) -> None:
    """Let the schedule end, and several GPUs scale, as the learning rate says."""
    scaling = dict(edit.cfg.get('auto_scale_lr') or dict(enable=False))
    scaling['base_batch_size'] = batch_size
    edit.set(('auto_scale_lr',), scaling, f'{lr} is for batches of {batch_size}')
    if old_lr:
        scale_rates(edit, lr / old_lr)


def _has_queries(model: dict) -> bool:
    return any(has(node, 'num_queries', 'num_proposals') for _, node in walk(model))
