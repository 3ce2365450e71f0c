"""Inputs of the operations in every layout, and how their outputs are compared."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from mmpoolformer.ops import backend

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
HAS_TRITON = importlib.util.find_spec('triton') and backend.SUPPORTED
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason='needs Triton and torch 2.8 or later')
FORMS = ['torch', pytest.param('triton', marks=needs_triton)]
PASS_BY_PASS = 'pass by pass'  # what a norm is on devices other than a CPU
HALF_TYPES = [torch.bfloat16, torch.float16]


if not hasattr(torch.library, 'custom_op'):
    HALF_TYPES.remove(torch.float16)  # before torch 2.4 no GroupNorm to compare with on the CPU


def relative_error(actual, expected):
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def plain_pool_mix(x, weight, bias, scale, sample_scale, pool_size):
    """Eqs. 2 and 4 as they are written."""
    normed = F.group_norm(x, 1, weight, bias)
    pooled = F.avg_pool2d(normed, pool_size, 1, pool_size // 2, count_include_pad=False)
    branch = scale[:, None, None] * (pooled - normed)
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
