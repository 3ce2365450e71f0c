"""A tiny PoolFormer whose fused and plain path are compared."""

import torch
from helpers import TINY, random_weights

from mmpoolformer import PoolFormer

BN = dict(type='BN')
CHANNELS_LAST = dict(memory_format=torch.channels_last)


def build(token_mixing='fused', arch=TINY, **options):
    model = PoolFormer(arch, token_mixing=token_mixing, **options)
    return random_weights(model, matrices=0.1, layer_scale=1.0).train()


def assert_features_close(actual, expected, limit=1e-5):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        assert (a - e).norm() / e.norm() < limit


def features_and_gradients(model, image, autocast=False):
    torch.manual_seed(3)  # of stochastic depth
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        features = model(image)
    weights = [torch.randn(f.shape, generator=torch.Generator().manual_seed(2)) for f in features]
    sum((f.float() * w).sum() for f, w in zip(features, weights)).backward()
    return features, {name: p.grad for name, p in model.named_parameters()}
