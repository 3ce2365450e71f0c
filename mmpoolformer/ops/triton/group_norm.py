"""GroupNorm over one group and its backward as Triton kernels."""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import CHANNELS, PIXELS, channels_last, count_parts, new_map, operation
from .statistics import load_moments, load_stats


@triton.jit(do_not_specialize=['parts'])
def norm_kernel(
    x_ptr, stats_ptr, weight_ptr, bias_ptr, y_ptr, moments_ptr,
    rows, C, eps, parts,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``weight (x - μ) / σ + bias``; grid [B, parts of the rows, C tiles]."""
    b = tl.program_id(0)
    shift, mean, rstd = load_stats(stats_ptr, moments_ptr, b, eps, parts)
    offset = b.to(tl.int64) * rows * C
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    gain = rstd * tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    tiles_here = tl.cdiv(tl.cdiv(rows, ROWS), tl.num_programs(1))
    first = tl.program_id(1) * tiles_here
    for tile in range(first, first + tiles_here):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (channel < C)[None, :]
        index = offset + row[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
        y = (x - shift - mean) * gain[None, :] + bias[None, :]
        tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward_sums_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr,
    rows, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``grad`` and ``grad · normalised x``; grid [B, parts, C tiles]."""
    b = tl.program_id(0)
    parts = tl.num_programs(1)
    shift, mean, rstd = load_moments(moments_ptr, b)
    offset = b.to(tl.int64) * rows * C
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    grad_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    product_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    tiles_here = tl.cdiv(tl.cdiv(rows, ROWS), parts)
    first = tl.program_id(1) * tiles_here
    for tile in range(first, first + tiles_here):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (channel < C)[None, :]
        index = offset + row[:, None] * C + channel[None, :]
        grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
        grad_sum += grad
        product_sum += grad * (x - shift - mean) * rstd
    sums_ptr += (b * parts + tl.program_id(1)) * 2 * C
    tl.store(sums_ptr + channel, tl.sum(grad_sum, 0), mask=channel < C)
    tl.store(sums_ptr + C + channel, tl.sum(product_sum, 0), mask=channel < C)


@triton.jit
def norm_backward_kernel(
    residual_ptr, grad_ptr, x_ptr, moments_ptr, sums_ptr, weight_ptr, dx_ptr,
    rows, C,
    RESIDUAL: tl.constexpr, ALL_CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient through the norm, plus ``residual``; grid [B, row tiles, C tiles]."""
    b = tl.program_id(0)
    shift, mean, rstd = load_moments(moments_ptr, b)
    every = tl.arange(0, ALL_CHANNELS)
    weights = tl.load(weight_ptr + every, mask=every < C, other=0.0).to(tl.float32)
    sums_ptr += b * 2 * C + every
    numel = (rows * C).to(tl.float32)
    grad_mean = tl.sum(weights * tl.load(sums_ptr, mask=every < C, other=0.0)) / numel
    product_mean = tl.sum(weights * tl.load(sums_ptr + C, mask=every < C, other=0.0)) / numel

    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    index = b.to(tl.int64) * rows * C + row[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    dx = rstd * (grad * weight[None, :] - grad_mean - (x - shift - mean) * rstd * product_mean)
    if RESIDUAL:
        dx += tl.load(residual_ptr + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def norm_backward(
    residual: Tensor | None, grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``x``, of the weight and of the bias.

    Args:
        residual: Added to the first, ``[B, C, H, W]``, channels-last.
        grad: Gradient of the norm's output, ``[B·H·W, C]`` or as ``x``.
        x: Input of the norm, ``[B, C, H, W]``, channels-last.
        moments: Its moments, ``[B, 3]``.
        weight: Weight of the norm, ``[C]``.
    """
    batch_size, channels, height, width = x.shape
    rows = height * width
    row_tiles, channel_tiles = triton.cdiv(rows, PIXELS), triton.cdiv(channels, CHANNELS)
    parts = count_parts(batch_size, row_tiles)
    sums = moments.new_empty(batch_size, parts, 2, channels)
    norm_backward_sums_kernel[batch_size, parts, channel_tiles](
        grad, x, moments, sums, rows, channels, ROWS=PIXELS, CHANNELS=CHANNELS
    )
    sums = sums.sum(1)
    d_bias, d_weight = (sums[:, i].sum(0) for i in range(2))
    dx = new_map(x, x.dtype)
    norm_backward_kernel[batch_size, row_tiles, channel_tiles](
        residual, grad, x, moments, sums, weight, dx, rows, channels,
        RESIDUAL=residual is not None, ALL_CHANNELS=triton.next_power_of_2(channels),
        ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return dx, d_weight, d_bias


def _fake_group_norm(x, stats, weight, bias, eps, dtype):
    return new_map(x, dtype), stats.new_empty(x.shape[0], 3)


@operation('group_norm', _fake_group_norm)
def group_norm(
    x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the normalised map and the moments ``[B, 3]`` of ``x``."""
    batch_size, channels, height, width = x.shape
    x = channels_last(x)
    y, moments = _fake_group_norm(x, stats, weight, bias, eps, dtype)
    parts = count_parts(batch_size, triton.cdiv(height * width, PIXELS))
    norm_kernel[batch_size, parts, triton.cdiv(channels, CHANNELS)](
        x, stats, weight, bias, y, moments, height * width, channels, eps, stats.shape[2],
        ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return y, moments


def _fake_group_norm_backward(grad, x, moments, weight):
    per_channel = moments.new_empty(x.shape[1])
    return new_map(x, x.dtype), per_channel, per_channel.clone()


@operation('group_norm_backward', _fake_group_norm_backward)
def group_norm_backward(
    grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of ``x``, of the weight and of the bias."""
    return norm_backward(None, channels_last(grad), channels_last(x), moments, weight)
