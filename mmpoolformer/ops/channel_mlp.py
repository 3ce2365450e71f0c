"""The channel MLP with its norm, LayerScale and residual as one operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, first_use
from .group_norm import group_norm

HALF_TYPES = (torch.bfloat16, torch.float16)


def channel_mlp_covers(x: Tensor, fc1_weight: Tensor, scale: Tensor) -> bool:
    """Whether :func:`channel_mlp` has Triton kernels for ``x``.

    It does on a CUDA device of compute capability 8 or higher, in 16 bits or under
    autocast, at widths whose tiles the chip holds, on request or where it was measured.
    """
    if not backend.may_run(x):
        return False
    matmul_type = _matmul_type(x)
    rest, fc = scale.dtype, fc1_weight.dtype
    types = x.dtype, rest, rest, fc, fc, fc, fc, rest, matmul_type
    hidden_dim, channels = fc1_weight.shape[:2]
    return matmul_type in HALF_TYPES and first_use.agrees(
        'channel_mlp', x.device, types, channels, hidden_dim
    )


def channel_mlp(
    x: Tensor,
    stats: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``x + sample_scale · scale · fc2(GELU(fc1(norm(x))))`` (arXiv 2111.11418, Eq. 3).

    Where :func:`channel_mlp_covers` says so, the hidden tensor, as a rule four times as wide
    as ``x``, is not stored: the forward never writes it, and the backward recomputes it one
    block at a time. Elsewhere PyTorch computes the same.

    Args:
        x: ``[B, C, H, W]``.
        stats: What :func:`~mmpoolformer.ops.pool_mix` returned with ``x``, or ``None``.
        norm_weight: Weight of the norm over one group, ``[C]``.
        norm_bias: Its bias, ``[C]``.
        fc1_weight: ``[hidden, C, 1, 1]``.
        fc1_bias: ``[hidden]``.
        fc2_weight: ``[C, hidden, 1, 1]``.
        fc2_bias: ``[C]``.
        scale: LayerScale, ``[C]``.
        sample_scale: Factor of each sample's branch ``[B]``; ``None`` stands for ones.
        eps: Added to the variance.

    Returns:
        A map of the type that ``x`` and the parameters promote to.
    """
    inputs = x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, scale
    if not channel_mlp_covers(x, fc1_weight, scale):
        return _in_pytorch(*inputs, sample_scale, eps)
    return _ChannelMlp.apply(*inputs, sample_scale, eps, stats, _matmul_type(x))


def _in_pytorch(
    x, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale, eps
):  # fmt: skip
    """The operation as Eq. 3 writes it, for every device."""
    hidden = F.gelu(F.conv2d(group_norm(x, norm_weight, norm_bias, eps), fc1, fc1_bias))
    gain = scale[:, None, None]
    if sample_scale is not None:
        gain = gain * sample_scale[:, None, None, None]
    y = torch.addcmul(x, gain, F.conv2d(hidden, fc2, fc2_bias))
    return y.to(torch.promote_types(x.dtype, scale.dtype))


class _ChannelMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale,
        eps, stats, matmul_type,
    ):  # fmt: skip
        ctx.set_materialize_grads(False)
        ops = backend.kernels()
        fc1_rows, fc2_rows = fc1.flatten(1).to(matmul_type), fc2.flatten(1).to(matmul_type)
        y, moments = ops.channel_mlp(
            x, ops.partial_stats(x) if stats is None else stats, norm_weight, norm_bias,
            fc1_rows, fc1_bias, fc2_rows, fc2_bias, scale, sample_scale, eps,
            torch.promote_types(x.dtype, scale.dtype),
        )  # fmt: skip
        ctx.save_for_backward(
            x, moments, norm_weight, norm_bias, fc1_rows, fc1_bias, fc2_rows, fc2_bias, scale,
            sample_scale,
        )  # fmt: skip
        ctx.shapes = fc1.shape, fc2.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 12
        gradients = backend.kernels().channel_mlp_backward(grad, *ctx.saved_tensors)
        dx, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale = gradients
        d_fc1, d_fc2 = d_fc1.view(ctx.shapes[0]), d_fc2.view(ctx.shapes[1])
        return (
            dx, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale,
            None, None, None, None,
        )  # fmt: skip


def _matmul_type(x: Tensor) -> torch.dtype:
    """The type in which a convolution of ``x`` would run."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _example(generator: torch.Generator, channels: int, hidden_dim: int) -> list[Tensor]:
    def randn(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator)

    x = randn(first_use.SAMPLES, channels, first_use.HEIGHT, first_use.WIDTH)
    return [
        x, 1 + randn(channels, scale=0.1), randn(channels),
        randn(hidden_dim, channels, 1, 1, scale=channels**-0.5), randn(hidden_dim),
        randn(channels, hidden_dim, 1, 1, scale=hidden_dim**-0.5), randn(channels),
        randn(channels),
    ]  # fmt: skip


def _compute(
    use_triton: bool, inputs: list[Tensor], types: tuple, channels: int, hidden_dim: int
) -> Tensor:
    sample_scale = first_use.sample_scale(inputs[0])
    if use_triton:
        return _ChannelMlp.apply(*inputs, sample_scale, 1e-5, None, types[-1])
    return _in_pytorch(*inputs, sample_scale, 1e-5)


def _covers(device: torch.device, channels: int, hidden_dim: int) -> bool:
    return backend.kernels().mlp_fits(channels, hidden_dim, device)


first_use.TRIALS['channel_mlp'] = first_use.Trial(_example, _compute, _covers)
