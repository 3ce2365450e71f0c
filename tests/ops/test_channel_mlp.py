"""The channel MLP against Eq. 3, in PyTorch and as Triton kernels."""

import pytest
import torch
import torch.nn.functional as F
from op_inputs import DEVICE, HALF_TYPES, mlp_inputs, needs_triton, relative_error, with_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from mmpoolformer.ops import channel_mlp, pool_mix


def plain_channel_mlp(x, weight, bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale):
    """Eq. 3 as it is written."""
    hidden = F.gelu(F.conv2d(F.group_norm(x, 1, weight, bias), fc1, fc1_bias))
    branch = scale[:, None, None] * F.conv2d(hidden, fc2, fc2_bias)
    return x + branch * sample_scale.to(x.dtype)[:, None, None, None]


def test_channel_mlp_in_pytorch_is_the_plain_definition():
    inputs, sample_scale, grad = mlp_inputs(16, 5, 3, torch.float32)
    expected = with_gradients(lambda *i: plain_channel_mlp(*i, sample_scale), inputs, grad)
    actual = with_gradients(
        lambda x, *p: channel_mlp(x, None, *p, sample_scale), inputs, grad, torch.float32
    )
    for a, e in zip(actual, expected):
        assert a.dtype == torch.float32 and relative_error(a, e) < 1e-5


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
@pytest.mark.parametrize('scale', [1e-6, 0.0])
def test_small_layer_scales_keep_their_gradients_in_float16(interpreted, scale):
    inputs, sample_scale, grad = mlp_inputs(16, 5, 3, torch.float16)
    inputs = [t.float() for t in inputs]
    inputs[-1] *= scale
    grad = 1e3 * grad.float()
    exact = with_gradients(lambda *i: plain_channel_mlp(*i, sample_scale), inputs, grad)
    inputs = [t.to(DEVICE).requires_grad_() for t in inputs]
    with torch.autocast(DEVICE, torch.float16):
        channel_mlp(inputs[0], None, *inputs[1:], sample_scale).backward(grad.to(DEVICE))
    for tensor, e in zip(inputs, exact[1:]):
        assert relative_error(tensor.grad, e) < 5e-3


@needs_triton
def test_the_channel_mlp_saves_its_input_and_no_other_map(interpreted):
    (x, *parameters), sample_scale, _ = mlp_inputs(16, 40, 40, torch.float16)
    x, *parameters = (t.to(DEVICE).requires_grad_() for t in (x, *parameters))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        channel_mlp(x, None, *parameters, sample_scale)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@needs_triton
def test_autocast_turns_each_weight_into_16_bits_once(interpreted):
    # For forward and backward; a block has one call a step, so PyTorch's own cache, which lives
    # as long, would save nothing.
    inputs, sample_scale, grad = mlp_inputs(16, 5, 3, torch.float32)
    x, *parameters = (t.to(DEVICE).requires_grad_() for t in inputs)
    weights, casts = {parameters[i].data_ptr() for i in (2, 4)}, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default and out.dtype == torch.float16:
                casts.append(args[0].data_ptr())
            return out

    with Watch():
        with torch.autocast(DEVICE, torch.float16):
            y = channel_mlp(x, None, *parameters, sample_scale)
        y.backward(grad.to(DEVICE))
    assert parameters[2].grad.dtype == torch.float32
    assert sorted(weights.intersection(casts)) == sorted(p for p in casts if p in weights)
    assert len(weights.intersection(casts)) == 2


@needs_triton
@pytest.mark.parametrize('channels, parts', [
    (64, (64, 0)), (96, (64, 32)), (128, (128, 0)), (192, (128, 64)), (320, (256, 64)),
    (384, (256, 128)), (512, None), (768, None), (8, None), (72, None), (112, None),
])  # fmt: skip
def test_widths_of_the_channel_mlp(triton_ops, channels, parts):
    assert triton_ops.split_channels(channels) == parts
