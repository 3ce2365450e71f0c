"""Learning rates by layer: which layer each parameter is in, and what has no weight decay."""

import pytest
import torch
from mmdet.engine.optimizers.layer_decay_optimizer_constructor import (
    get_layer_id_for_convnext,
    get_stage_id_for_convnext,
)
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmpoolformer import METAFORMERS, MetaFormer, MetaFormerLayerDecay, PoolFormer
from mmpoolformer.utils.errors import LaunchError

LR, DECAY = 0.1, 0.05


class Detector(nn.Module):
    """A backbone with a head, which has the whole learning rate."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(8, 2, 1)


def groups_of(backbone, **paramwise):
    """Rate and weight decay of each parameter, by name."""
    with torch.device('meta'):
        model = Detector(backbone())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    optimizer = dict(type='AdamW', lr=LR, weight_decay=DECAY)
    MetaFormerLayerDecay(dict(optimizer=optimizer), paramwise).add_params(groups, model)
    return {
        names[id(parameter)]: (group['lr'] / LR, group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }


# PoolFormer-S12, written out: (2, 2, 6, 2) blocks, of which three of the third stage are a layer.
S12 = {
    'patch_embed.proj.weight': (6, True),
    'patch_embed.proj.bias': (6, False),
    'network.0.1.mlp.fc1.weight': (5, True),
    'network.0.1.layer_scale_1': (5, False),
    'network.0.1.norm1.weight': (5, False),
    'network.1.proj.weight': (4, True),
    'network.2.0.mlp.fc2.bias': (4, False),
    'network.3.proj.weight': (3, True),
    'network.4.2.mlp.fc1.weight': (3, True),
    'network.4.3.mlp.fc1.weight': (2, True),
    'network.4.5.mlp.fc1.weight': (2, True),
    'network.5.proj.weight': (1, True),
    'network.6.1.mlp.fc1.weight': (1, True),
    'norm0.weight': (0, False),
    'norm6.bias': (0, False),
}


def test_the_layers_of_s12():
    found = groups_of(lambda: PoolFormer('s12'), decay_rate=0.5)
    for name, (steps, decays) in S12.items():
        assert found[f'backbone.{name}'] == (0.5**steps, DECAY * decays), name
    assert (found['head.weight'], found['head.bias']) == ((1.0, DECAY), (1.0, 0.0))


# As deep as ConvNeXt-T, whose layers both toolboxes count with num_layers=6.
@pytest.mark.parametrize(
    'decay_type, layer_of, most',
    [('layer_wise', get_layer_id_for_convnext, 6), ('stage_wise', get_stage_id_for_convnext, 8)],
)
def test_the_layers_are_counted_as_those_of_convnext(decay_type, layer_of, most):
    found = groups_of(lambda: MetaFormer('caformer_s18'), decay_rate=0.5, decay_type=decay_type)
    for name, (rate, _) in found.items():
        theirs = name.replace('backbone.patch_embed', 'backbone.downsample_layers.0')
        if theirs.startswith('backbone.network.'):
            entry = int(theirs.split('.')[2])
            part = 'stages' if entry % 2 == 0 else 'downsample_layers'
            rest = theirs.split('.', 3)[3]
            theirs = f'backbone.{part}.{(entry + 1) // 2}.{rest}'
        assert rate == 0.5 ** (6 + 2 - layer_of(theirs, most) - 1), name


# LayerScale, ResScale and StarReLU have one number, or one a channel.
SPARED = ('norm', 'scale', 'act', 'pos_embed')


@pytest.mark.parametrize('name', METAFORMERS)
def test_every_parameter_is_in_one_group_and_only_weights_decay(name):
    built = []
    found = groups_of(lambda: built.append(MetaFormer(name)) or built[0], decay_rate=0.9)
    trained = {n for n, p in built[0].named_parameters() if p.requires_grad}
    assert {n.removeprefix('backbone.') for n in found if n.startswith('backbone.')} == trained
    for key, (rate, decay) in found.items():
        spared = key.endswith('.bias') or any(word in key for word in SPARED)
        assert decay == (0.0 if spared else DECAY), key
        assert 0 < rate <= 1


def test_mmengine_builds_it_by_its_name():
    wrapper = build_optim_wrapper(
        Detector(PoolFormer(dict(layers=(1,) * 4, embed_dims=(8, 8, 8, 8)))),
        dict(
            constructor='MetaFormerLayerDecay',
            paramwise_cfg=dict(decay_rate=0.5),
            optimizer=dict(type='SGD', lr=LR),
        ),
    )
    assert sorted({group['lr'] for group in wrapper.optimizer.param_groups}) == [
        LR * 0.5**steps for steps in (5, 4, 3, 2, 1, 0)
    ]


@pytest.mark.parametrize('out_indices', [(1, 2, 3), (2,)])
def test_a_backbone_of_fewer_stages_has_the_same_layers(out_indices):
    whole = groups_of(lambda: PoolFormer('s12'), decay_rate=0.5)
    part = groups_of(lambda: PoolFormer('s12', out_indices=out_indices), decay_rate=0.5)
    assert {name: whole[name] for name in part} == part


def test_frozen_stages_are_left_out():
    found = groups_of(lambda: PoolFormer('s12', frozen_stages=1), decay_rate=0.5)
    assert not any('patch_embed' in name or 'network.0.' in name for name in found)


@pytest.mark.parametrize(
    'paramwise, words',
    [
        (dict(), ['decay_rate=None', 'above 0']),
        (dict(decay_rate=1.5), ['1.5', 'at most 1']),
        (dict(decay_rate=0.9, decay_type='block'), ['block', 'layer_wise', 'stage_wise']),
        (dict(decay_rate=0.9, num_layers=6), ['num_layers', 'leave']),
    ],
    ids=['none', 'rate', 'type', 'layers'],
)
def test_bad_arguments(paramwise, words):
    with pytest.raises(LaunchError) as error:
        groups_of(lambda: PoolFormer('s12'), **paramwise)
    assert all(word in str(error.value) for word in words)


def test_a_rate_that_is_not_given_is_refused():
    with pytest.raises(LaunchError, match='optimizer has no lr'):
        MetaFormerLayerDecay(dict(optimizer=dict(type='AdamW')), dict(decay_rate=0.9))


@pytest.mark.parametrize('kind, default', [('SGD', 0.0), ('AdamW', 0.01)])
def test_a_weight_decay_that_is_not_given_is_the_optimizers(kind, default):
    wrapper = build_optim_wrapper(
        Detector(PoolFormer(dict(layers=(1,) * 4, embed_dims=(8, 8, 8, 8)))),
        dict(
            constructor='MetaFormerLayerDecay',
            paramwise_cfg=dict(decay_rate=0.5),
            optimizer=dict(type=kind, lr=LR),
        ),
    )
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert group['weight_decay'] == (default if parameter.ndim > 1 else 0.0)


def test_a_model_without_a_metaformer_is_refused():
    constructor = MetaFormerLayerDecay(
        dict(optimizer=dict(type='SGD', lr=LR)), dict(decay_rate=0.9)
    )
    with pytest.raises(LaunchError, match=r'Conv2d has no PoolFormer'):
        constructor.add_params([], nn.Conv2d(3, 3, 1))
