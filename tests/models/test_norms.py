"""The norms: their digits in every memory layout, and their names."""

import pytest
import torch
from helpers import KINDS, tiny_metaformer
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn import functional as F

from mmpoolformer.models.norms import OneGroupNorm


@pytest.mark.parametrize('name', ['poolformer_s12', *KINDS])
def test_weight_decay_of_norms_can_be_switched_off(name):
    model = nn.ModuleDict(dict(backbone=tiny_metaformer(name)))
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    decays = {
        id(parameter): group['weight_decay']
        for group in build_optim_wrapper(model, cfg).param_groups
        for parameter in group['params']
    }
    norms = {key: p for key, p in model.named_parameters() if 'norm' in key}
    assert norms and all(decays[id(parameter)] == 0 for parameter in norms.values())


@pytest.mark.parametrize('name', ['poolformerv2_s12', 'identityformer_s12', 'metaformer_id_s12'])
def test_a_frozen_stem_trains_on_small_channels_last_images(name):
    # PyTorch's GroupNorm crashes in the backward of such maps.
    model = tiny_metaformer(name, frozen_stages=0).train()
    image = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    sum(feature.mean() for feature in model(image)).backward()
    assert model.network[0][0].norm1.weight.grad.isfinite().all()


@pytest.mark.parametrize('bias', [True, False])
def test_one_group_norm_keeps_its_digits_in_channels_last(bias):
    norm = OneGroupNorm(8, bias=bias)
    x = (1e4 + torch.randn(2, 8, 16, 16)).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().contiguous().requires_grad_()
    actual, expected = norm(x), F.group_norm(exact, 1, eps=norm.eps)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(2, 8, 16, 16)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
    assert (norm.bias is not None) == bias
