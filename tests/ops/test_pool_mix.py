"""Norm, pooling, scale and residual against Eqs. 2 and 4, in PyTorch and as Triton kernels."""

from importlib import import_module

import pytest
import torch
from op_inputs import (
    DEVICE,
    FORMS,
    HALF_TYPES,
    LAYOUTS,
    mix_inputs,
    needs_triton,
    plain_pool_mix,
    relative_error,
    with_gradients,
)

from mmpoolformer.ops import pool_mix


@pytest.mark.parametrize('form', FORMS, indirect=True)
@pytest.mark.parametrize('pool_size', [3, 5, 7])
@pytest.mark.parametrize('shape', [(2, 24, 9, 7), (1, 64, 16, 16), (3, 80, 1, 5)], ids=str)
@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_pool_mix_is_the_plain_definition(form, pool_size, shape, mean):
    inputs, sample_scale, grad = mix_inputs(shape, mean)
    actual = with_gradients(
        lambda *i: pool_mix(*i, sample_scale, pool_size), inputs, grad, torch.float32
    )
    expected = with_gradients(
        lambda *i: plain_pool_mix(*i, sample_scale, pool_size), inputs, grad, torch.float64
    )
    for name, a, e in zip(('y', 'x', 'weight', 'bias', 'scale'), actual, expected):
        if name == 'bias':  # it cancels
            assert not a.any()
        else:
            assert relative_error(a, e) < 1e-5, name


@pytest.mark.parametrize('form', FORMS, indirect=True)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_pool_mix_takes_every_layout(form, layout):
    (x, *vectors), sample_scale, _ = mix_inputs((2, 16, 6, 5))
    x = LAYOUTS[layout](x).to(DEVICE)
    vectors = [v.to(DEVICE) for v in vectors]
    actual, _ = pool_mix(x, *vectors, sample_scale)
    torch.testing.assert_close(actual, plain_pool_mix(x, *vectors, sample_scale, 3))


@pytest.mark.parametrize('form', FORMS, indirect=True)
@pytest.mark.parametrize('value', [0.0, 3.0, 0.1, 1.1e8])
def test_pool_mix_of_a_constant_map_is_that_map(form, value):
    (x, *vectors), _, grad = mix_inputs((2, 16, 6, 5))
    x = torch.full_like(x, value)
    y, dx, *_ = with_gradients(pool_mix, [x, *vectors], grad, torch.float32)
    torch.testing.assert_close(y.cpu(), x, rtol=1e-6, atol=0)
    assert dx.isfinite().all()


@pytest.mark.parametrize('form', FORMS, indirect=True)
def test_pool_mix_of_no_samples(form):
    (x, *vectors), _, _ = mix_inputs((2, 16, 6, 5))
    y, _ = pool_mix(x[:0].to(DEVICE), *(v.to(DEVICE) for v in vectors))
    assert y.shape == (0, 16, 6, 5)


@pytest.mark.parametrize('form', FORMS, indirect=True)
@pytest.mark.parametrize('dtype', HALF_TYPES, ids=str)
@pytest.mark.parametrize('mean', [0.0, 3.0])
def test_pool_mix_in_16_bits_is_as_near_to_float64_as_the_plain_definition(form, dtype, mean):
    inputs, sample_scale, grad = mix_inputs((2, 64, 16, 16), mean, dtype)
    exact, plain, actual = (
        with_gradients(function, inputs, grad, t)
        for function, t in (
            (lambda *i: plain_pool_mix(*i, sample_scale, 3), torch.float64),
            (lambda *i: plain_pool_mix(*i, sample_scale, 3), dtype),
            (lambda *i: pool_mix(*i, sample_scale), dtype),
        )
    )
    for name, a, p, e in zip(('y', 'x', 'weight', 'bias', 'scale'), actual, plain, exact):
        assert a.dtype == dtype
        if name != 'bias':
            assert relative_error(a, e) <= 1.1 * relative_error(p, e), name


def test_pool_mix_gradients_by_finite_differences():
    inputs, sample_scale, _ = mix_inputs((2, 3, 4, 5), dtype=torch.float64)
    for pool_size in (3, 5):
        assert torch.autograd.gradcheck(
            lambda *i, p=pool_size: pool_mix(*i, sample_scale.cpu(), p)[0],
            [t.requires_grad_() for t in inputs],
        )


@pytest.mark.parametrize('form', FORMS, indirect=True)
def test_pool_mix_saves_its_input_and_three_numbers_per_sample(form):
    inputs, sample_scale, _ = mix_inputs((2, 16, 32, 32))
    x, *vectors = (t.to(DEVICE).requires_grad_() for t in inputs)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pool_mix(x, *vectors, sample_scale)
    large = [t for t in saved if t.numel() > 64]
    assert len(large) == 1 and large[0].data_ptr() == x.data_ptr()
    assert sum(t.numel() for t in saved) == x.numel() + 3 * len(x) + 3 * 16 + len(sample_scale)


@needs_triton
def test_no_gradient_of_the_statistics_is_made_up(interpreted, monkeypatch):
    inputs, sample_scale, _ = mix_inputs((2, 16, 4, 5))
    x, *vectors = (t.to(DEVICE).requires_grad_() for t in inputs)
    operation, given = import_module('mmpoolformer.ops.pool_mix')._PoolMix, []
    backward = operation.backward

    def note(ctx, grad, grad_stats):
        given.append(grad_stats)
        return backward(ctx, grad, grad_stats)

    monkeypatch.setattr(operation, 'backward', staticmethod(note))
    y, stats = pool_mix(x, *vectors, sample_scale)
    y.sum().backward()
    assert stats is not None and given == [None]
