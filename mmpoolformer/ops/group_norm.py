"""GroupNorm over one group, and the statistics that the token mixing shares with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend


def group_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """GroupNorm over one group, to the last digit in every layout.

    PyTorch's own, in channels-last on the CPU, subtracts the square of the mean
    from the mean of the squares, and its backward crashes on small maps whose gradient nobody
    needs (torch 2.1 and 2.13). Parameters are as for :func:`~mmpoolformer.ops.pool_mix`; ``bias``
    may be left out.
    """
    return _GroupNorm.apply(x, weight, bias, eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.set_materialize_grads(False)
        # Inductor fuses the passes; PyTorch's own operation it takes apart again.
        ctx.on_cpu = x.device.type == 'cpu' and not backend.is_compiling()
        forward = _forward_on_cpu if ctx.on_cpu else _forward
        y, *moments = forward(x.to(work_type(x)), weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, *moments)
        return y.to(torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 4
        x, weight, bias, *moments = ctx.saved_tensors
        backward = _backward_on_cpu if ctx.on_cpu else _backward
        work = work_type(x)
        dx, d_weight, d_bias = backward(grad.to(work), x.to(work), weight.to(work), *moments)
        d_bias = None if bias is None else d_bias.to(bias.dtype)
        return dx.to(x.dtype), d_weight.to(weight.dtype), d_bias, None


def _forward(x, weight, bias, eps):
    """The norm pass by pass, for every device; its moments behind the map."""
    y, moments = centre(x, eps)
    _, mean, rstd = per_sample(moments)
    gain = rstd * weight.to(y.dtype)[:, None, None]
    offset = 0 if bias is None else bias.to(y.dtype)[:, None, None]
    return y.mul_(gain).add_(offset - mean * gain), moments


def _backward(grad, x, weight, moments):
    shift, mean, rstd = per_sample(moments)
    centred = x - shift
    d_bias = grad.sum((2, 3), keepdim=True)
    d_weight = ((grad * centred).sum((2, 3), keepdim=True) - mean * d_bias) * rstd
    gain = weight[:, None, None]
    grad_mean, product_mean = (
        (gain * sums).sum(1, keepdim=True) / sample_size(x) for sums in (d_bias, d_weight)
    )
    slope = rstd**2 * product_mean
    dx = centred.mul_(-slope).add_(slope * mean - rstd * grad_mean)
    dx.addcmul_(grad, rstd * gain)
    return dx, d_weight.sum(0).flatten(), d_bias.sum(0).flatten()


def _forward_on_cpu(x, weight, bias, eps):
    """The same by PyTorch's operation, which keeps its digits once the shift is off."""
    shift = shift_of(x)
    weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    y, mean, rstd = torch.ops.aten.native_group_norm(
        _dense(x - shift, x), weight, bias, *_sizes(x), eps
    )
    return y, shift, mean, rstd


def _backward_on_cpu(grad, x, weight, shift, mean, rstd):
    # All three gradients, as it crashes in channels-last where the first is left out.
    return torch.ops.aten.native_group_norm_backward(
        _dense(grad, x), _dense(x - shift, x), mean, rstd, weight, *_sizes(x), [True] * 3
    )


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
