"""The backbone with its kernels, on a GPU or on one that Triton's interpreter stands in for."""

import copy

import pytest
import torch
from helpers import TINY, random_weights
from op_inputs import DEVICE, needs_triton, relative_error

from mmpoolformer import PoolFormer

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def count_launches(interpreted, triton_ops, monkeypatch):
    """How often each operation ran as a kernel."""
    counts = {}

    def counted(name):
        function = getattr(triton_ops, name)

        def count(*args):
            counts[name] = counts.get(name, 0) + 1
            return function(*args)

        return count

    for name in ('pool_mix', 'group_norm', 'channel_mlp'):
        monkeypatch.setattr(triton_ops, f'{name}_backward', counted(f'{name}_backward'))
        monkeypatch.setattr(triton_ops, name, counted(name))
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    return counts


def build(token_mixing, **options):
    model = PoolFormer(TINY, token_mixing=token_mixing, **options)
    return random_weights(model, matrices=0.1, layer_scale=1.0).train().to(DEVICE)


def features_and_gradients(model, autocast=False, dtype=torch.float32):
    torch.manual_seed(3)  # of stochastic depth
    image = torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(1))
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        features = model(image.to(DEVICE, dtype))
    sum((f.double() * f.detach().double().cos()).sum() for f in features).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return features, {k: g for k, g in gradients.items() if not k.endswith('norm1.bias')}


@pytest.mark.parametrize('options', [dict(), dict(drop_path_rate=0.5), dict(with_cp=True)], ids=str)
def test_backbone_in_float32_is_the_plain_definition(options, count_launches):
    expected, expected_gradients = features_and_gradients(build('plain', **options))
    features, gradients = features_and_gradients(build('auto', **options))
    for feature, e in zip(features, expected):
        assert relative_error(feature.detach(), e.detach()) < 1e-5
    for name, e in expected_gradients.items():
        assert relative_error(gradients[name], e) < 1e-4, name
    forwards = 2 if 'with_cp' in options else 1
    # Of the norms, five are before an MLP and four of outputs.
    assert count_launches == dict(
        pool_mix=5 * forwards,
        pool_mix_backward=5,
        group_norm=5 * forwards + 4,
        group_norm_backward=9,
    )


def test_backbone_under_autocast_is_as_near_to_float64_as_the_plain_definition(count_launches):
    plain, fused = build('plain'), build('auto')
    exact, exact_gradients = features_and_gradients(
        copy.deepcopy(plain).double(), dtype=torch.float64
    )  # fmt: skip
    expected, expected_gradients = features_and_gradients(plain, autocast=True)
    features, gradients = features_and_gradients(fused, autocast=True)

    def distance(actual, reference):
        pairs = list(zip(actual, reference))
        return sum(relative_error(a.detach(), r.detach()) ** 2 for a, r in pairs) ** 0.5

    # Two blocks have 16 channels and one 32, which the kernels of the MLP take.
    assert count_launches['channel_mlp'] == count_launches['channel_mlp_backward'] == 3
    assert distance(features, exact) <= 1.1 * distance(expected, exact)
    exact, expected, actual = (
        list(g.values()) for g in (exact_gradients, expected_gradients, gradients)
    )
    assert distance(actual, exact) <= 1.1 * distance(expected, exact)
