"""The channel MLP with its norm, LayerScale and residual as one CUDA operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backend import triton_ops

HALF_TYPES = (torch.bfloat16, torch.float16)


def channel_mlp_covers(x: Tensor, hidden_dim: int) -> bool:
    """Whether :func:`channel_mlp` takes ``x``.

    It does on a CUDA device of compute capability 8 or higher, in 16 bits or under
    autocast, at widths whose tiles the chip holds.
    """
    ops = triton_ops(x)
    return (
        ops is not None
        and _matmul_type(x) in HALF_TYPES
        and ops.mlp_fits(x.shape[1], hidden_dim, x.device)
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

    The hidden tensor, as a rule four times as wide as ``x``, is not stored: the
    forward never writes it, and the backward recomputes it one block at a time.

    Args:
        x: ``[B, C, H, W]`` on a CUDA device, such that :func:`channel_mlp_covers` it.
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
    return _ChannelMlp.apply(
        x, stats, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, scale,
        sample_scale, eps, _matmul_type(x),
    )  # fmt: skip


class _ChannelMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale,
        eps, matmul_type,
    ):  # fmt: skip
        ops = triton_ops(x)
        fc1_rows, fc2_rows = fc1.flatten(1).to(matmul_type), fc2.flatten(1).to(matmul_type)
        y, moments, branch = ops.channel_mlp(
            x, ops.partial_stats(x) if stats is None else stats, norm_weight, norm_bias,
            fc1_rows, fc1_bias, fc2_rows, fc2_bias, scale, sample_scale, eps,
            torch.promote_types(x.dtype, scale.dtype), any(ctx.needs_input_grad),
        )  # fmt: skip
        ctx.save_for_backward(
            x, branch, moments, norm_weight, norm_bias, fc1_rows, fc1_bias, fc2_rows, scale,
            sample_scale,
        )  # fmt: skip
        ctx.shapes = fc1.shape, fc2.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, branch, moments, norm_weight, norm_bias, fc1, fc1_bias, fc2, scale, sample_scale = (
            ctx.saved_tensors
        )
        gradients = triton_ops(x).channel_mlp_backward(
            grad, x, branch, moments, norm_weight, norm_bias, fc1, fc1_bias, fc2, scale,
            sample_scale,
        )  # fmt: skip
        dx, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale = gradients
        d_fc1, d_fc2 = d_fc1.view(ctx.shapes[0]), d_fc2.view(ctx.shapes[1])
        return (
            dx, None, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale,
            None, None, None,
        )  # fmt: skip


def _matmul_type(x: Tensor) -> torch.dtype:
    """The type in which a convolution of ``x`` would run."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
