"""Where no gradient comes in, the operations compute none, instead of one of zeros."""

import pytest
import torch
from op_inputs import DEVICE, mix_inputs, mlp_inputs, needs_triton

from mmpoolformer.ops import channel_mlp, group_norm, pool_mix


class WithoutGradient(torch.autograd.Function):
    """A part that others put behind a backbone, and that has no gradient to give."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def mix(name):
    (x, weight, bias, scale), *_ = mix_inputs((2, 16, 4, 5))
    if name == 'group_norm':
        return group_norm, (x, weight, bias)
    return lambda *inputs: pool_mix(*inputs)[0], (x, weight, bias, scale)


def mlp():
    inputs, *_ = mlp_inputs(16, 4, 5, torch.float16)
    return lambda x, *parameters: channel_mlp(x, None, *parameters), inputs


def assert_no_gradients(operation, inputs):
    inputs = [t.to(DEVICE).requires_grad_() for t in inputs]
    WithoutGradient.apply(operation(*inputs)).sum().backward()
    assert all(t.grad is None for t in inputs)


@pytest.mark.parametrize('name', ['group_norm', 'pool_mix'])
def test_operations_in_pytorch(name):
    assert_no_gradients(*mix(name))


@needs_triton
def test_kernels_of_the_channel_mlp(interpreted):
    assert_no_gradients(*mlp())
