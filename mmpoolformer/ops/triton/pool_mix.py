"""The pooling token mixer and its backward as Triton kernels.

A program has a strip of the map, some columns of some channels, and walks down a band of its
rows. The window is separable: of each row it loads what a window is wide and keeps the sums
along the rows that a window is high, so a position costs three loads with a window of 3, not
nine.
"""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import CHANNELS, PROGRAMS, channels_last, new_map, operation
from .statistics import (
    add_step,
    load_moments,
    load_stats,
    merge_steps,
    partial_stats,
    store_stats,
)

COLUMNS = 16
# Least rows of a band; a program loads the rows beside its band too.
BAND = 8


@triton.jit
def _window_length(position, size, RADIUS: tl.constexpr):
    """Positions of the window around one that lie inside an axis of the map."""
    length = tl.minimum(position + RADIUS, size - 1) - tl.maximum(position - RADIUS, 0) + 1
    return tl.maximum(length, 1).to(tl.float32)


@triton.jit
def _row_sum(
    ptr, shift, h, column, channel, H, W, C, RADIUS: tl.constexpr, TRANSPOSE: tl.constexpr
):
    """Sum of ``values - shift`` of row ``h`` over each column's window, and the row itself.

    What lies outside of the map counts as 0. With ``TRANSPOSE`` each term is divided by the
    size of its own window: the transpose of the average.
    """
    total = tl.zeros([column.shape[0], channel.shape[0]], tl.float32)
    row = 0
    for offset in tl.static_range(-RADIUS, RADIUS + 1):
        w = column + offset
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        index = (h * W + w)[:, None] * C + channel[None, :]
        mask = inside[:, None] & (channel < C)[None, :]
        values = tl.load(ptr + index, mask=mask, other=0.0)
        if offset == 0:
            row = values
        factor = tl.where(inside, 1.0, 0.0)
        if TRANSPOSE:
            window = _window_length(h, H, RADIUS) * _window_length(w, W, RADIUS)
            total += values.to(tl.float32) * (factor / window)[:, None]
        else:
            total += values.to(tl.float32) * factor[:, None] - (shift * factor)[:, None]
    return total, row


@triton.jit
def _rows_above(
    ptr, shift, first, column, channel, H, W, C, RADIUS: tl.constexpr, TRANSPOSE: tl.constexpr
):
    """What :func:`_row_sum` returns of the rows that a band's first window has but its last."""
    sums = ()
    rows = ()
    for offset in tl.static_range(-RADIUS, RADIUS):
        total, row = _row_sum(
            ptr, shift, first + offset, column, channel, H, W, C, RADIUS, TRANSPOSE
        )
        sums += (total,)
        if offset >= 0:
            rows += (row,)
    return sums, rows


@triton.jit
def _next_row(
    sums, rows, ptr, shift, h, column, channel, H, W, C,
    RADIUS: tl.constexpr, TRANSPOSE: tl.constexpr,
):  # fmt: skip
    """Sum over the windows around row ``h``, that row, and what the next row needs of them."""
    total, row = _row_sum(ptr, shift, h + RADIUS, column, channel, H, W, C, RADIUS, TRANSPOSE)
    sums += (total,)
    rows += (row,)
    for i in tl.static_range(2 * RADIUS):
        total += sums[i]
    return total, rows[0].to(tl.float32), sums[1:], rows[1:]


@triton.jit
def _place(part, H, W, bands, COLUMNS: tl.constexpr):
    """First and last row and the columns of a part of the map."""
    rows = tl.cdiv(H, bands)
    first = part % bands * rows
    return first, tl.minimum(first + rows, H), part // bands * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit(do_not_specialize=['parts', 'bands'])
def mix_kernel(
    x_ptr, stats_ptr, weight_ptr, scale_ptr, sample_scale_ptr,
    y_ptr, moments_ptr, y_stats_ptr,
    H, W, C, eps, parts, bands,
    RADIUS: tl.constexpr, SAMPLE_SCALE: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``y = x + k (P(x) - x)`` and the statistics of ``y``; grid [B, parts · C tiles]."""
    b = tl.program_id(0)
    shift, _, rstd = load_stats(stats_ptr, moments_ptr, b, eps, parts)
    gain = rstd
    if SAMPLE_SCALE:
        gain *= tl.load(sample_scale_ptr + b).to(tl.float32)

    x_ptr += b.to(tl.int64) * H * W * C
    y_ptr += b.to(tl.int64) * H * W * C
    channel_tiles = tl.cdiv(C, CHANNELS)
    part = tl.program_id(1) // channel_tiles
    first, last, column = _place(part, H, W, bands, COLUMNS)
    channel = tl.program_id(1) % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    mask = (column < W)[:, None] & (channel < C)[None, :]
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    gain = (gain * weight * scale)[None, :]
    columns = 1.0 / _window_length(column, W, RADIUS)

    mean = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    m2 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    sums, rows = _rows_above(x_ptr, shift, first, column, channel, H, W, C, RADIUS, False)
    for h in range(first, last):
        total, x, sums, rows = _next_row(
            sums, rows, x_ptr, shift, h, column, channel, H, W, C, RADIUS, False
        )
        average = total * (columns / _window_length(h, H, RADIUS))[:, None]
        y = (x + gain * (average - (x - shift))).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + (h * W + column)[:, None] * C + channel[None, :], y, mask=mask)
        mean, m2 = add_step(y.to(tl.float32) - shift, h - first, mean, m2)
    count, mean, m2 = merge_steps(last - first, mask, mean, m2)
    store_stats(y_stats_ptr, count, mean, m2, shift)


@triton.jit(do_not_specialize=['bands'])
def mix_backward_sums_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr,
    H, W, C, bands,
    RADIUS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``grad (P(x) - x)`` per sample and channel; grid [B, parts, C tiles]."""
    b = tl.program_id(0)
    shift = tl.load(moments_ptr + 3 * b)
    x_ptr += b.to(tl.int64) * H * W * C
    grad_ptr += b.to(tl.int64) * H * W * C
    first, last, column = _place(tl.program_id(1), H, W, bands, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (column < W)[:, None] & (channel < C)[None, :]
    columns = 1.0 / _window_length(column, W, RADIUS)
    result = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    sums, rows = _rows_above(x_ptr, shift, first, column, channel, H, W, C, RADIUS, False)
    for h in range(first, last):
        total, x, sums, rows = _next_row(
            sums, rows, x_ptr, shift, h, column, channel, H, W, C, RADIUS, False
        )
        average = total * (columns / _window_length(h, H, RADIUS))[:, None]
        index = (h * W + column)[:, None] * C + channel[None, :]
        grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
        result += grad * (average - (x - shift))
    sums_ptr += (b * tl.num_programs(1) + tl.program_id(1)) * C
    tl.store(sums_ptr + channel, tl.sum(tl.where(mask, result, 0.0), 0), mask=channel < C)


@triton.jit(do_not_specialize=['bands'])
def mix_backward_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr, weight_ptr, scale_ptr, sample_scale_ptr, dx_ptr,
    H, W, C, bands,
    RADIUS: tl.constexpr, SAMPLE_SCALE: tl.constexpr,
    ALL_CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input; grid [B, parts, C tiles]."""
    b = tl.program_id(0)
    shift, mean, rstd = load_moments(moments_ptr, b)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    every = tl.arange(0, ALL_CHANNELS)
    weights = tl.load(weight_ptr + every, mask=every < C, other=0.0).to(tl.float32)
    scales = tl.load(scale_ptr + every, mask=every < C, other=0.0).to(tl.float32)
    sums = tl.load(sums_ptr + b * C + every, mask=every < C, other=0.0)
    slope = rstd * rstd * rstd * gain * tl.sum(weights * scales * sums) / (H * W * C).to(tl.float32)

    x_ptr += b.to(tl.int64) * H * W * C
    grad_ptr += b.to(tl.int64) * H * W * C
    dx_ptr += b.to(tl.int64) * H * W * C
    first, last, column = _place(tl.program_id(1), H, W, bands, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (column < W)[:, None] & (channel < C)[None, :]
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    gain = (gain * rstd * weight * scale)[None, :]
    sums, rows = _rows_above(grad_ptr, 0.0, first, column, channel, H, W, C, RADIUS, True)
    for h in range(first, last):
        spread, grad, sums, rows = _next_row(
            sums, rows, grad_ptr, 0.0, h, column, channel, H, W, C, RADIUS, True
        )
        index = (h * W + column)[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
        dx = grad + gain * (spread - grad) - slope * (x - shift - mean)
        tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _grid(x: Tensor) -> tuple[int, int, int]:
    """Bands of rows, parts of columns and rows, and tiles of channels."""
    batch_size, channels, height, width = x.shape
    channel_tiles = triton.cdiv(channels, CHANNELS)
    strips = triton.cdiv(width, COLUMNS)
    wanted = triton.cdiv(PROGRAMS, max(batch_size, 1) * strips * channel_tiles)
    bands = min(wanted, triton.cdiv(height, BAND))
    return bands, bands * strips, channel_tiles


def _fake_pool_mix(x, weight, scale, sample_scale, pool_size, eps, dtype):
    _, parts, channel_tiles = _grid(x)
    moments = x.new_empty(x.shape[0], 3, dtype=torch.float32)
    stats = x.new_empty(x.shape[0], 4, parts * channel_tiles, dtype=torch.float32)
    return new_map(x, dtype), moments, stats


@operation('pool_mix', _fake_pool_mix)
def pool_mix(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None,
    pool_size: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, the moments ``[B, 3]`` of ``x``, and the output's statistics."""
    batch_size, channels, height, width = x.shape
    x = channels_last(x)
    x_stats = partial_stats(x)
    y, moments, stats = _fake_pool_mix(x, weight, scale, sample_scale, pool_size, eps, dtype)
    mix_kernel[batch_size, stats.shape[2]](
        x, x_stats, weight, scale, sample_scale, y, moments, stats, height, width, channels, eps,
        x_stats.shape[2], _grid(x)[0],
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        COLUMNS=COLUMNS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return y, moments, stats


def _fake_pool_mix_backward(grad, x, moments, weight, scale, sample_scale, pool_size):
    return new_map(x, x.dtype), moments.new_empty(x.shape[0], x.shape[1])


@operation('pool_mix_backward', _fake_pool_mix_backward)
def pool_mix_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None,
    pool_size: int,
) -> tuple[Tensor, Tensor]:
    """Returns the gradient of ``x``, and ``Σ grad (P(x) - x)`` per sample and channel."""
    batch_size, channels, height, width = x.shape
    grad, x = channels_last(grad), channels_last(x)
    bands, parts, channel_tiles = _grid(x)
    sums = moments.new_empty(batch_size, parts, channels)
    mix_backward_sums_kernel[batch_size, parts, channel_tiles](
        grad, x, moments, sums, height, width, channels, bands,
        RADIUS=pool_size // 2, COLUMNS=COLUMNS, CHANNELS=CHANNELS,
    )  # fmt: skip
    sums = sums.sum(1)
    dx = new_map(x, x.dtype)
    mix_backward_kernel[batch_size, parts, channel_tiles](
        grad, x, moments, sums, weight, scale, sample_scale, dx, height, width, channels, bands,
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        ALL_CHANNELS=triton.next_power_of_2(channels), COLUMNS=COLUMNS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return dx, sums
