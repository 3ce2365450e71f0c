"""The token mixers against plain definitions, alone and in the frame."""

import re

import pytest
import timm
import torch
from helpers import TINY_HEADS, random_weights
from mmengine.model import BaseModule
from plain_mixers import plain_attention, plain_random, plain_sep_conv, plain_spatial_mlp
from torch import nn

from mmpoolformer import (
    TOKEN_MIXERS,
    MetaFormer,
)
from mmpoolformer.models.token_mixers import Pooling


@pytest.mark.parametrize(
    'name, plain',
    [
        ('identity', lambda mixer, x: x),
        ('attention', plain_attention),
        ('spatial_mlp', plain_spatial_mlp),
        ('random', plain_random),
        ('sep_conv', plain_sep_conv),
    ],
)
def test_token_mixer_computes_its_definition(name, plain):
    size = dict(size=(5, 7)) if name in ('spatial_mlp', 'random') else {}
    mixer = random_weights(TOKEN_MIXERS.build(dict(type=name, dim=64, **size)))
    x = torch.randn(2, 64, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), plain(mixer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mixer', sorted(set(TOKEN_MIXERS.module_dict)))
def test_every_mixer_in_the_frame_gives_four_maps_with_gradients(mixer):
    model = MetaFormer(TINY_HEADS, token_mixers=mixer, input_size=(64, 96))
    features = model(torch.randn(2, 3, 64, 96))
    assert [f.shape[1:] for f in features] == [(32, 16, 24), (32, 8, 12), (64, 4, 6), (64, 2, 3)]
    sum(f.square().mean() for f in features).backward()
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    frozen = {key.split('.')[-1] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({'random_matrix'} if mixer == 'random' else set())


@pytest.mark.parametrize('name', ['poolformerv2_s12', 'convformer_s18', 'caformer_s18'])
def test_initial_weights_are_spread_as_timms(name):
    own = MetaFormer(name).network[6][-1].state_dict()
    reference = timm.create_model(name).stages[3].blocks[-1].state_dict()
    for key, tensor in reference.items():
        key = re.sub(r'(res_scale)(\d)\.scale', r'\1_\2', key)
        if tensor.ndim > 1:
            torch.testing.assert_close(own[key].std(), tensor.std(), rtol=0.1, atol=1e-4)
        else:
            assert torch.equal(own[key], tensor), key


def test_one_mixer_per_stage():
    mixers = ['identity', 'pooling', 'sep_conv', 'attention']
    model = MetaFormer(TINY_HEADS, token_mixers=mixers)
    kinds = [type(stage[0].token_mixer).__name__ for stage in model.network[::2]]
    assert kinds == ['Identity', 'Pooling', 'SepConv', 'Attention']


def test_a_pooling_of_ones_own_gets_the_window():
    class OwnPooling(Pooling):
        pass

    model = MetaFormer(TINY_HEADS, token_mixers=OwnPooling, pool_size=5)
    assert model.blocks[0].token_mixer.pool_size == 5


@pytest.mark.parametrize('mixer', ['spatial_mlp', 'random'])
def test_a_mixer_of_one_size_refuses_another_one(mixer):
    model = MetaFormer(TINY_HEADS, token_mixers=mixer, input_size=64)
    with pytest.raises(ValueError, match=r'made for maps of 16×16, not 24×24.*input_size'):
        model(torch.randn(1, 3, 96, 96))


def test_init_cfg_of_a_mixer_is_heeded():
    class Own(BaseModule):
        def __init__(self, dim):
            super().__init__(init_cfg=dict(type='Constant', layer='Conv2d', val=3.0))
            self.conv = nn.Conv2d(dim, dim, 1)

        def forward(self, x):
            return self.conv(x)

    model = MetaFormer(TINY_HEADS, token_mixers=Own)
    model.init_weights()
    assert all((block.token_mixer.conv.weight == 3).all() for block in model.blocks)


def test_attention_takes_memory_in_proportion_to_the_pixels():
    """Of four times the pixels, four times the memory; the scores alone would be sixteen."""
    from torch.profiler import ProfilerActivity, profile

    def kept(side):
        mixer = TOKEN_MIXERS.build(dict(type='attention', dim=64))
        x = torch.randn(1, 64, side, side)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            out = mixer(x)
        del out
        return sum(event.self_cpu_memory_usage for event in profiler.key_averages())

    assert kept(64) < 4.2 * kept(32)
