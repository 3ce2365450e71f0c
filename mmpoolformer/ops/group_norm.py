"""GroupNorm over one group, and the statistics that the token mixing shares with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, first_use

# On torch 2.1 two processes no longer trained as one does with PyTorch's operation: losses were
# 2e-4 apart, relatively, after 13 steps.
HAS_EXACT_NATIVE = hasattr(torch.library, 'custom_op')


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
    needs (torch 2.1 and 2.13). The gradients of ``weight`` and ``bias`` are sums, and on the CPU
    PyTorch's: in channels-last these round 4 to 5 times more than sums pass by pass, 1e-6 of
    their size (64 channels, 32×32, float32).

    Parameters are as for :func:`~mmpoolformer.ops.pool_mix`; ``bias`` may be left out, and
    ``stats`` are what ``pool_mix`` returned with ``x``: the kernels then read ``x`` once.
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
        ctx.set_materialize_grads(False)
        dtype = torch.promote_types(x.dtype, weight.dtype)
        ctx.use_triton = use_triton
        # Inductor fuses the passes; PyTorch's own operation it takes apart again.
        is_fused = use_triton or backend.is_compiling()
        ctx.on_cpu = x.device.type == 'cpu' and HAS_EXACT_NATIVE and not is_fused
        if use_triton:
            ops = backend.kernels()
            stats = ops.partial_stats(x) if stats is None else stats
            y, moments = ops.group_norm(x, stats, weight, bias, eps, dtype)
        else:
            forward = _forward_on_cpu if ctx.on_cpu else _forward
            y, moments = forward(x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, moments, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 6
        x, moments, weight, bias = ctx.saved_tensors
        backward = _backward_on_cpu if ctx.on_cpu else _backward
        if ctx.use_triton:
            backward = backend.kernels().group_norm_backward
        dx, d_weight, d_bias = backward(grad, x, moments, weight)
        d_bias = None if bias is None else d_bias.to(bias.dtype)
        return dx, d_weight.to(weight.dtype), d_bias, None, None, None


def _forward(x, weight, bias, eps, dtype):
    """The operation pass by pass, for every device."""
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


def _forward_on_cpu(x, weight, bias, eps, dtype):
    """The same by PyTorch's operation, which keeps its digits once the shift is off."""
    work = work_type(x)
    shift = shift_of(x.to(work))
    weight, bias = (None if t is None else t.to(work) for t in (weight, bias))
    y, mean, rstd = torch.ops.aten.native_group_norm(
        _dense(x - shift, x), weight, bias, *_sizes(x), eps
    )
    return y.to(dtype), torch.cat((shift.flatten(1), mean, rstd), 1)


def _backward_on_cpu(grad, x, moments, weight):
    shift = per_sample(moments)[0]
    mean, rstd = moments[:, 1:].t().contiguous()[:, :, None]
    # All three gradients, as it crashes in channels-last where the first is left out.
    dx, d_weight, d_bias = torch.ops.aten.native_group_norm_backward(
        _dense(grad.to(shift.dtype), x), _dense(x - shift, x), mean, rstd,
        weight.to(shift.dtype), *_sizes(x), [True] * 3,
    )  # fmt: skip
    return dx.to(x.dtype), d_weight, d_bias


def _dense(map_: Tensor, x: Tensor) -> Tensor:
    """Bring a map into the layout of ``x``, if that is one that PyTorch's operation takes."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return map_.contiguous(memory_format=layout)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Samples, channels, positions and groups, as PyTorch's operation takes them."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3], 1


def centre(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x - shift``, and per sample the shift, the mean of what is left, and 1 / σ.

    The mean of the squares loses no digits by the subtraction of the squared mean, however
    large ``x`` is, as the :func:`shift <shift_of>` is taken off before.
    """
    axes = (1, 2, 3)
    shift = shift_of(x)
    centred = x - shift
    inverse_size = 1 / sample_size(x)
    mean = centred.sum(axes, keepdim=True) * inverse_size
    variance = centred.square().sum(axes, keepdim=True) * inverse_size - mean.square()
    rstd = (variance.clamp_min(0) + eps).rsqrt()
    return centred, torch.cat((shift, mean, rstd), 1).flatten(1)


def shift_of(x: Tensor) -> Tensor:
    """About the mean of each sample, ``[B, 1, 1, 1]``: that of every fourth row and column.

    A sixteenth of the map; by the law of total variance it is within four σ of the whole mean.
    """
    part = x[:, :, ::4, ::4]
    # A product, as Inductor repeats a division for each element that uses its result.
    return part.sum((1, 2, 3), keepdim=True) * (1 / sample_size(part))


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
