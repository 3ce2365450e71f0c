"""The backward of GroupNorm over one group as Triton kernels, for a branch beside a residual."""

# Triton reads the annotations of kernels, so they are not postponed here.
import triton
import triton.language as tl
from torch import Tensor

from .common import CHANNELS, PIXELS, count_parts, new_map
from .statistics import load_moments


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
    ALL_CHANNELS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``residual`` plus the gradient through the norm; grid [B, row tiles, C tiles]."""
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
    residual = tl.load(residual_ptr + index, mask=mask, other=0.0).to(tl.float32)
    dx = grad * weight[None, :] - grad_mean - (x - shift - mean) * rstd * product_mean
    tl.store(dx_ptr + index, (residual + rstd * dx).to(dx_ptr.dtype.element_ty), mask=mask)


def norm_backward(
    residual: Tensor, grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``x``, with ``residual`` added, of the weight and of the bias.

    Args:
        residual: ``[B, C, H, W]``, channels-last.
        grad: Gradient of the norm's output, ``[B·H·W, C]``.
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
        ALL_CHANNELS=triton.next_power_of_2(channels), ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return dx, d_weight, d_bias
