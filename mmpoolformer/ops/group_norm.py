"""GroupNorm over one group, and the statistics that the token mixing shares with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, first_use


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    stats: Tensor | None = None,
) -> Tensor:
    """GroupNorm over one group, to the last digit in every layout.

    PyTorch's own, in channels-last on the CPU, subtracts the square of the mean
    from the mean of the squares, and its backward crashes on small maps whose gradient nobody
    needs (torch 2.1 and 2.13). Parameters are as for :func:`~mmpoolformer.ops.pool_mix`; ``bias``
    may be left out, and ``stats`` are what ``pool_mix`` returned with ``x``: the kernels then
    read ``x`` once.
    """
    use_triton = (
        backend.may_run(x)
        and bias is not None
        and first_use.agrees(
            'group_norm', x.device, (x.dtype, weight.dtype, bias.dtype), weight.shape[0]
        )
    )
    return _GroupNorm.apply(x, weight, bias, eps, stats, use_triton)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, stats, use_triton):
        dtype = torch.promote_types(x.dtype, weight.dtype)
        if use_triton:
            ops = backend.kernels()
            stats = ops.partial_stats(x) if stats is None else stats
            y, moments = ops.group_norm(x, stats, weight, bias, eps, dtype)
        else:
            y, moments = _forward(x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, moments, weight, bias)
        ctx.use_triton = use_triton
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, moments, weight, bias = ctx.saved_tensors
        backward = backend.kernels().group_norm_backward if ctx.use_triton else _backward
        dx, d_weight, d_bias = backward(grad, x, moments, weight)
        d_bias = None if bias is None else d_bias.to(bias.dtype)
        return dx, d_weight.to(weight.dtype), d_bias, None, None, None


def _forward(x, weight, bias, eps, dtype):
    """The operation in plain PyTorch, for every device."""
    y, moments = centre(x.to(work_type(x)), eps)
    _, mean, rstd = per_sample(moments)
    gain = rstd * weight.to(y.dtype)[:, None, None]
    offset = 0 if bias is None else bias.to(y.dtype)[:, None, None]
    y.mul_(gain).add_(offset - mean * gain)
    return y.to(dtype), moments


def _backward(grad, x, moments, weight):
    shift, mean, rstd = per_sample(moments)
    grad, centred = grad.to(shift.dtype), x.to(shift.dtype) - shift
    d_bias = grad.sum((2, 3), keepdim=True)
    d_weight = ((grad * centred).sum((2, 3), keepdim=True) - mean * d_bias) * rstd
    gain = weight.to(shift.dtype)[:, None, None]
    grad_mean, product_mean = (
        (gain * sums).sum(1, keepdim=True) / sample_size(x) for sums in (d_bias, d_weight)
    )
    slope = rstd**2 * product_mean
    dx = centred.mul_(-slope).add_(slope * mean - rstd * grad_mean)
    dx.addcmul_(grad, rstd * gain)
    return dx.to(x.dtype), d_weight.sum(0).flatten(), d_bias.sum(0).flatten()


def centre(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x - shift``, and per sample the shift, the mean of what is left, and 1 / σ.

    The shift is the mean of every fourth row and column, a sixteenth of the map. By the
    law of total variance it is within four σ of the whole mean, so the mean of the
    squares loses no digits by the subtraction of the squared mean, however large ``x`` is.
    """
    axes = (1, 2, 3)
    part = x[:, :, ::4, ::4]
    # Products, as Inductor repeats a division for each element that uses its result.
    shift = part.sum(axes, keepdim=True) * (1 / sample_size(part))
    centred = x - shift
    inverse_size = 1 / sample_size(x)
    mean = centred.sum(axes, keepdim=True) * inverse_size
    variance = centred.square().sum(axes, keepdim=True) * inverse_size - mean.square()
    rstd = (variance.clamp_min(0) + eps).rsqrt()
    return centred, torch.cat((shift, mean, rstd), 1).flatten(1)


def sample_size(x: Tensor) -> int:
    """Numbers in one sample of ``[B, C, H, W]``."""
    return x.shape[1] * x.shape[2] * x.shape[3]


def per_sample(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, mean and 1 / σ of ``[B, 3]`` moments, each ``[B, 1, 1, 1]``."""
    return moments[:, :, None, None, None].unbind(1)


def work_type(x: Tensor) -> torch.dtype:
    """The type of statistics and sums: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _example(generator: torch.Generator, channels: int) -> list[Tensor]:
    size = first_use.SAMPLES, channels, first_use.HEIGHT, first_use.WIDTH
    x = torch.randn(size, generator=generator) + 1
    weight = 0.5 + torch.rand(channels, generator=generator)
    return [x, weight, torch.randn(channels, generator=generator)]


def _compute(use_triton: bool, inputs: list[Tensor], types: tuple, channels: int) -> Tensor:
    return _GroupNorm.apply(*inputs, 1e-5, None, use_triton)


first_use.TRIALS['group_norm'] = first_use.Trial(_example, _compute)
