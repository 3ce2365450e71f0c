"""The operations against the plain definition, in PyTorch and as Triton kernels.

Without a GPU, Triton's interpreter runs the kernels on the CPU, and the real
compiler translates them for a GPU that is not there.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmpoolformer.ops import channel_mlp, group_norm, pool_mix

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
HAS_TRITON = importlib.util.find_spec('triton') and hasattr(torch.library, 'custom_op')
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason='needs Triton and torch 2.4 or later')
FORMS = ['torch', pytest.param('triton', marks=needs_triton)]
HALF_TYPES = [torch.bfloat16, torch.float16]


if not hasattr(torch.library, 'custom_op'):
    HALF_TYPES.remove(torch.float16)  # before torch 2.4 no GroupNorm to compare with on the CPU


def relative_error(actual, expected):
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.fixture(scope='module')
def triton_ops():
    return importlib.import_module('mmpoolformer.ops.triton_ops')


@pytest.fixture
def interpreted(triton_ops, monkeypatch):
    """Let the operations run the Triton kernels, on the CPU too."""
    for name in ('pool_mix', 'channel_mlp'):
        module = importlib.import_module(f'mmpoolformer.ops.{name}')
        monkeypatch.setattr(module, 'triton_ops', lambda x: triton_ops)
    if DEVICE == 'cpu':
        correct_bfloat16(monkeypatch)


def correct_bfloat16(monkeypatch):
    """The interpreter multiplies the bits of bfloat16, and cuts digits off instead of rounding."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def rounding_cast(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(source.data).bfloat16().view(torch.uint16)
            return TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, source, dtype)

    def widening_dot(self, a, b, *args):
        a, b = (
            cast(self, operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
            for operand in (a, b)
        )
        return dot(self, a, b, *args)

    monkeypatch.setattr(InterpreterBuilder, 'cast_impl', rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, 'create_dot', widening_dot)


@pytest.fixture
def form(request):
    if request.param == 'triton':
        request.getfixturevalue('interpreted')
    return request.param


def plain_pool_mix(x, weight, bias, scale, sample_scale, pool_size):
    """Eqs. 2 and 4 as they are written."""
    normed = F.group_norm(x, 1, weight, bias)
    pooled = F.avg_pool2d(normed, pool_size, 1, pool_size // 2, count_include_pad=False)
    branch = scale[:, None, None] * (pooled - normed)
    return x + branch * sample_scale.to(x.dtype)[:, None, None, None]


def plain_channel_mlp(x, weight, bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale):
    """Eq. 3 as it is written."""
    hidden = F.gelu(F.conv2d(F.group_norm(x, 1, weight, bias), fc1, fc1_bias))
    branch = scale[:, None, None] * F.conv2d(hidden, fc2, fc2_bias)
    return x + branch * sample_scale.to(x.dtype)[:, None, None, None]


def with_gradients(function, inputs, grad, dtype=torch.float64):
    """The output of ``function`` and the gradient of every input that has one."""
    inputs = [t.detach().to(DEVICE, dtype).requires_grad_() for t in inputs]
    y = function(*inputs)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(grad.to(DEVICE, y.dtype))
    return [y.detach(), *(t.grad for t in inputs)]


def mix_inputs(shape, mean=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    x = (torch.randn(shape, generator=generator) + mean).to(dtype)
    vectors = [(0.5 + torch.rand(shape[1], generator=generator)).to(dtype) for _ in range(3)]
    sample_scale = torch.rand(shape[0], generator=generator).to(DEVICE)
    return [x, *vectors], sample_scale, torch.randn(shape, generator=generator).to(dtype)


LAYOUTS = {
    'contiguous': lambda x: x,
    'channels-last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'strided': lambda x: torch.stack((x, x), -1)[..., 0],
    'expanded': lambda x: x[:1].expand_as(x),
}


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


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_keeps_the_digits_of_large_means(layout, mean):
    (x, weight, bias, _), _, _ = mix_inputs((2, 16, 24, 24), mean)
    expected = F.group_norm(x.double(), 1, weight.double(), bias.double())
    expected = LAYOUTS[layout](expected)
    assert relative_error(group_norm(LAYOUTS[layout](x), weight, bias), expected) < 1e-6


@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_gradients(mean):
    (x, weight, bias, _), _, grad = mix_inputs((2, 16, 9, 7), mean)
    inputs = [x, weight, bias]
    expected = with_gradients(lambda x, w, b: F.group_norm(x, 1, w, b), inputs, grad)
    actual = with_gradients(group_norm, inputs, grad, torch.float32)
    for name, a, e in zip(('y', 'x', 'weight', 'bias'), actual, expected):
        assert relative_error(a, e) < 1e-5, name


def mlp_inputs(channels, height, width, dtype):
    generator = torch.Generator().manual_seed(channels)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    hidden = 4 * channels
    x = randn(2, channels, height, width) + 1
    parameters = [
        1 + randn(channels, scale=0.1), randn(channels),
        randn(hidden, channels, 1, 1, scale=channels**-0.5), randn(hidden),
        randn(channels, hidden, 1, 1, scale=hidden**-0.5), randn(channels), randn(channels),
    ]  # fmt: skip
    sample_scale = torch.rand(2, generator=generator).to(DEVICE)
    return [x, *parameters], sample_scale, randn(2, channels, height, width)


@needs_triton
@pytest.mark.parametrize('dtype', HALF_TYPES, ids=str)
@pytest.mark.parametrize('channels, height, width', [(64, 8, 8), (16, 5, 3), (96, 7, 4)])
def test_channel_mlp_is_as_near_to_float64_as_the_plain_definition(
    interpreted, dtype, channels, height, width
):
    inputs, sample_scale, grad = mlp_inputs(channels, height, width, dtype)
    exact, plain, actual = (
        with_gradients(function, inputs, grad, t)
        for function, t in (
            (lambda *i: plain_channel_mlp(*i, sample_scale), torch.float64),
            (lambda *i: plain_channel_mlp(*i, sample_scale), dtype),
            (lambda x, *p: channel_mlp(x, None, *p, sample_scale), dtype),
        )
    )
    names = ('y', 'x', 'norm weight', 'norm bias', 'fc1', 'fc1 bias', 'fc2', 'fc2 bias', 'scale')
    for name, a, p, e in zip(names, actual, plain, exact):
        assert a.dtype == dtype
        assert relative_error(a, e) <= 1.1 * relative_error(p, e), name


@needs_triton
def test_statistics_of_pool_mix_serve_the_channel_mlp(interpreted):
    (x, *parameters), sample_scale, _ = mlp_inputs(32, 6, 5, torch.float16)
    x, *parameters = (t.to(DEVICE) for t in (x, *parameters))
    mixed, stats = pool_mix(x, *(torch.ones(32, device=DEVICE, dtype=x.dtype) for _ in range(3)))
    torch.testing.assert_close(
        channel_mlp(mixed, stats, *parameters, sample_scale),
        channel_mlp(mixed, None, *parameters, sample_scale),
    )


@needs_triton
@pytest.mark.parametrize('channels, parts', [
    (64, (64, 0)), (96, (64, 32)), (128, (128, 0)), (192, (128, 64)), (320, (256, 64)),
    (384, (256, 128)), (512, None), (768, None), (8, None), (72, None), (112, None),
])  # fmt: skip
def test_widths_of_the_channel_mlp(triton_ops, channels, parts):
    assert triton_ops.split_channels(channels) == parts


@needs_triton
def test_custom_ops_have_matching_fake_implementations(interpreted, triton_ops):
    (x, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale), sample_scale, grad = (
        mlp_inputs(16, 5, 6, torch.float16)
    )
    channels_last = LAYOUTS['channels-last']
    x, grad, fc1, fc2 = channels_last(x), channels_last(grad), fc1.flatten(1), fc2.flatten(1)
    ops = torch.ops.mmpoolformer
    mix = x, norm_weight, scale, sample_scale, 3, 1e-5, x.dtype
    y, moments, stats = ops.pool_mix(*mix)
    norm = norm_weight, norm_bias, fc1, fc1_bias, fc2
    mlp = y, stats, *norm, fc2_bias, scale, None, 1e-5, x.dtype, True
    _, mlp_moments, branch = ops.channel_mlp(*mlp)
    for op, arguments in {
        ops.partial_stats: (x,),
        ops.pool_mix: mix,
        ops.pool_mix_backward: (grad, x, moments, norm_weight, scale, sample_scale, 3),
        ops.channel_mlp: mlp,
        ops.channel_mlp_backward: (grad, y, branch, mlp_moments, *norm, scale, sample_scale),
    }.items():
        arguments = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(op.default, arguments, test_utils=['test_schema', 'test_faketensor'])


@needs_triton
@pytest.mark.parametrize('chip', [80, 90])
def test_kernels_compile_for_gpus(chip):
    script = Path(__file__).parent / 'compile_kernels.py'
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    run = subprocess.run(
        [sys.executable, script, str(chip)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'compiled' in run.stdout
