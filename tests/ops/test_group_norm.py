"""The norm of one group against the plain definition, in PyTorch and as Triton kernels."""

import pytest
import torch
import torch.nn.functional as F
from op_inputs import (
    DEVICE,
    FORMS,
    HALF_TYPES,
    LAYOUTS,
    PASS_BY_PASS,
    mix_inputs,
    needs_triton,
    relative_error,
    with_gradients,
)

from mmpoolformer.ops import group_norm, pool_mix


@pytest.mark.parametrize('form', [*FORMS, PASS_BY_PASS], indirect=True)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_keeps_the_digits_of_large_means(form, layout, mean):
    x, weight, bias = (t.to(DEVICE) for t in mix_inputs((2, 16, 24, 24), mean)[0][:3])
    expected = F.group_norm(x.double(), 1, weight.double(), bias.double())
    expected = LAYOUTS[layout](expected)
    assert relative_error(group_norm(LAYOUTS[layout](x), weight, bias), expected) < 1e-6


@pytest.mark.parametrize('form', [*FORMS, PASS_BY_PASS], indirect=True)
@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_gradients(form, mean):
    (x, weight, bias, _), _, grad = mix_inputs((2, 16, 9, 7), mean)
    inputs = [x, weight, bias]
    expected = with_gradients(lambda x, w, b: F.group_norm(x, 1, w, b), inputs, grad)
    actual = with_gradients(group_norm, inputs, grad, torch.float32)
    for name, a, e in zip(('y', 'x', 'weight', 'bias'), actual, expected):
        assert relative_error(a, e) < 1e-5, name


@needs_triton
@pytest.mark.parametrize('dtype', HALF_TYPES, ids=str)
def test_group_norm_in_16_bits_is_as_near_to_float64_as_the_plain_definition(interpreted, dtype):
    (x, weight, bias, _), _, grad = mix_inputs((2, 80, 9, 7), 3.0, dtype)
    inputs = [x, weight, bias]
    exact, plain = (
        with_gradients(lambda x, w, b: F.group_norm(x, 1, w, b), inputs, grad, t)
        for t in (torch.float64, dtype)
    )
    actual = with_gradients(group_norm, inputs, grad, dtype)
    for name, a, p, e in zip(('y', 'x', 'weight', 'bias'), actual, plain, exact):
        assert a.dtype == dtype
        assert relative_error(a, e) <= 1.1 * relative_error(p, e), name


@needs_triton
def test_statistics_of_pool_mix_serve_the_norm(interpreted, triton_ops, monkeypatch):
    x, *vectors = (t.to(DEVICE) for t in mix_inputs((2, 72, 20, 35), 1e3)[0])
    y, stats = pool_mix(x, *vectors)
    expected = group_norm(y, *vectors[:2])
    monkeypatch.delattr(triton_ops, 'partial_stats')
    torch.testing.assert_close(group_norm(y, *vectors[:2], stats=stats), expected)


@needs_triton
def test_statistics_of_less_than_a_tile_and_of_many(interpreted, triton_ops):
    for shape in ((1, 3, 1, 1), (2, 5, 31, 67), (1, 64, 8, 4)):
        (x, *_), _, _ = mix_inputs(shape, 100.0)
        x = x.to(DEVICE)
        count, mean, m2, shift = triton_ops.partial_stats(x).double().unbind(1)
        whole = x.double().flatten(1)
        assert count.sum(1).tolist() == [whole.shape[1]] * len(x)
        actual = (count * mean).sum(1) / whole.shape[1] + shift[:, 0]
        torch.testing.assert_close(actual, whole.mean(1), rtol=1e-6, atol=0)
        between = count * (mean - (actual - shift[:, 0])[:, None]).square()
        variance = (m2 + between).sum(1) / whole.shape[1]
        torch.testing.assert_close(variance, whole.var(1, correction=0), rtol=1e-5, atol=1e-12)
