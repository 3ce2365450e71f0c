"""PoolFormer's residual token mixing as one operation.

The first half of a block is ``y = x + s (P(n) - n)`` with ``n = γ (x - μ) / σ + β``,
GroupNorm over one group, and ``P`` an average that does not count padding
(arXiv 2111.11418, Eqs. 2 and 4). ``P`` is linear and keeps constants, so μ and β
cancel and the norm leaves one factor per sample and channel::

    y = x + k (P(x) - x),    k[b, c] = s[c] γ[c] / σ[b],    σ[b]² = var(x[b]) + eps

This is exact. It holds for every window, not for a norm with statistics per
position or with several groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, first_use
from .group_norm import centre, per_sample, sample_size, work_type


def pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None = None,
    pool_size: int = 3,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None]:
    """Compute ``x + sample_scale · scale · (P(norm(x)) - norm(x))``.

    Its backward keeps ``x`` and three numbers per sample. Statistics and sums are
    in float32 (float64 for a float64 ``x``), whatever the type of ``x``.

    Args:
        x: ``[B, C, H, W]``. Channels-last is the faster layout.
        weight: Weight of the norm, ``[C]``.
        bias: Bias of the norm, ``[C]``. It cancels; its gradient is zero.
        scale: LayerScale, ``[C]``.
        sample_scale: Factor of each sample's branch ``[B]``, as stochastic depth
            draws it; without gradient. ``None`` stands for ones.
        pool_size: Side of the averaging window, odd.
        eps: Added to the variance.

    Returns:
        The mixed map, of the type that ``x`` and the parameters promote to, and
        statistics of it for :func:`~mmpoolformer.ops.channel_mlp` where the
        Triton kernels ran, else ``None``.
    """
    use_triton = backend.may_run(x) and first_use.agrees(
        'pool_mix', x.device, (x.dtype, weight.dtype, bias.dtype, scale.dtype),
        weight.shape[0], pool_size,
    )  # fmt: skip
    return _PoolMix.apply(x, weight, bias, scale, sample_scale, pool_size, eps, use_triton)


class _PoolMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, scale, sample_scale, pool_size, eps, use_triton):
        ctx.set_materialize_grads(False)  # no zeros for the statistics
        dtype = torch.promote_types(x.dtype, torch.promote_types(weight.dtype, scale.dtype))
        forward = backend.kernels().pool_mix if use_triton else _forward
        y, moments, stats = forward(x, weight, scale, sample_scale, pool_size, eps, dtype)
        ctx.save_for_backward(x, moments, weight, bias, scale, sample_scale)
        ctx.pool_size, ctx.use_triton = pool_size, use_triton
        if stats is not None:
            ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 8
        x, moments, weight, bias, scale, sample_scale = ctx.saved_tensors
        backward = backend.kernels().pool_mix_backward if ctx.use_triton else _backward
        dx, sums = backward(grad, x, moments, weight, scale, sample_scale, ctx.pool_size)
        # Gradient of scale · weight: each sample's sums times what multiplies them.
        gain = moments[:, 2] if sample_scale is None else moments[:, 2] * sample_scale
        d_product = gain.to(sums.dtype) @ sums
        d_weight = (d_product * scale).to(weight.dtype)
        d_scale = (d_product * weight).to(scale.dtype)
        return dx, d_weight, torch.zeros_like(bias), d_scale, None, None, None, None


def _forward(x, weight, scale, sample_scale, pool_size, eps, dtype):
    """The operation in plain PyTorch, for every device."""
    work = work_type(x)
    x = x.to(work)
    centred, moments = centre(x, eps)
    gain = _gain(weight, scale, sample_scale, work) * per_sample(moments)[2]
    # In place: on the CPU a fresh map costs more than another pass.
    y = _average(centred, pool_size).sub_(centred).mul_(gain).add_(x)
    return y.to(dtype), moments, None


def _backward(grad, x, moments, weight, scale, sample_scale, pool_size):
    work = work_type(x)
    shift, mean, rstd = per_sample(moments)
    grad, centred = grad.to(work), x.to(work) - shift
    sums = _average(centred, pool_size).sub_(centred).mul_(grad).sum((2, 3))
    gain = _gain(weight, scale, sample_scale, work)
    d_rstd = (gain.flatten(1) * sums).sum(1)[:, None, None, None]
    mixed = gain * rstd * grad
    # The transpose of the average: at the borders it is not the average itself.
    window = (pool_size, pool_size), (1, 1), (pool_size // 2, pool_size // 2)
    dx = torch.ops.aten.avg_pool2d_backward(mixed, centred, *window, False, False, None)
    slope = rstd**3 * d_rstd / sample_size(x)
    dx = dx.sub_(mixed).add_(grad).sub_(centred.sub_(mean).mul_(slope))
    return dx.to(x.dtype), sums


def _average(x: Tensor, pool_size: int) -> Tensor:
    return F.avg_pool2d(x, pool_size, 1, pool_size // 2, count_include_pad=False)


def _gain(weight: Tensor, scale: Tensor, sample_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    gain = (weight.to(dtype) * scale.to(dtype))[None, :, None, None]
    return gain if sample_scale is None else gain * sample_scale.to(dtype)[:, None, None, None]


def _example(generator: torch.Generator, channels: int, pool_size: int) -> list[Tensor]:
    size = first_use.SAMPLES, channels, first_use.HEIGHT, first_use.WIDTH
    x = torch.randn(size, generator=generator) + 1
    return [x, *(0.5 + torch.rand(channels, generator=generator) for _ in range(3))]


def _compute(
    use_triton: bool, inputs: list[Tensor], types: tuple, channels: int, pool_size: int
) -> Tensor:
    sample_scale = first_use.sample_scale(inputs[0])
    return _PoolMix.apply(*inputs, sample_scale, pool_size, 1e-5, use_triton)[0]


first_use.TRIALS['pool_mix'] = first_use.Trial(_example, _compute)
