"""The pooling token mixer and its backward as Triton kernels."""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import CHANNELS, PIXELS, channels_last, count_parts, new_map, operation
from .statistics import add_to_stats, load_moments, load_stats, partial_stats, store_stats


@triton.jit
def _window_size(h, w, H, W, RADIUS: tl.constexpr):
    """Positions of the window around (h, w) that lie inside the map."""
    rows = tl.minimum(h + RADIUS, H - 1) - tl.maximum(h - RADIUS, 0) + 1
    columns = tl.minimum(w + RADIUS, W - 1) - tl.maximum(w - RADIUS, 0) + 1
    return (rows * columns).to(tl.float32)


@triton.jit
def _window_sum(
    ptr, shift, pixel, channel, mask, H, W, C, RADIUS: tl.constexpr, TRANSPOSE: tl.constexpr
):
    """Sum of ``values - shift`` over each pixel's window, float32 ``[pixels, channels]``.

    With ``TRANSPOSE`` each term is divided by the size of its own window: the
    transpose of the average.
    """
    h = pixel // W
    w = pixel % W
    total = tl.zeros(mask.shape, tl.float32)
    for dh in tl.static_range(-RADIUS, RADIUS + 1):
        for dw in tl.static_range(-RADIUS, RADIUS + 1):
            inside = (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
            inside = inside[:, None] & mask
            index = (pixel + dh * W + dw)[:, None] * C + channel[None, :]
            values = tl.load(ptr + index, mask=inside, other=0.0).to(tl.float32)
            values = tl.where(inside, values - shift, 0.0)
            if TRANSPOSE:
                values /= tl.maximum(_window_size(h + dh, w + dw, H, W, RADIUS), 1.0)[:, None]
            total += values
    return total


@triton.jit
def _difference(x_ptr, shift, pixel, channel, mask, H, W, C, RADIUS: tl.constexpr):
    """``(P(x) - x, x)``: local average minus identity, and the input itself."""
    index = pixel[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    window_sum = _window_sum(x_ptr, shift, pixel, channel, mask, H, W, C, RADIUS, False)
    window_size = _window_size(pixel // W, pixel % W, H, W, RADIUS)
    return window_sum / window_size[:, None] - (x - shift), x


@triton.jit
def mix_kernel(
    x_ptr, stats_ptr, weight_ptr, scale_ptr, sample_scale_ptr,
    y_ptr, moments_ptr, y_stats_ptr,
    H, W, C, eps,
    RADIUS: tl.constexpr, SAMPLE_SCALE: tl.constexpr, PARTS: tl.constexpr, Y_PARTS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``y = x + k (P(x) - x)`` and the statistics of ``y``; grid [B, Y_PARTS]."""
    b = tl.program_id(0)
    shift, _, rstd = load_stats(stats_ptr, moments_ptr, b, eps, PARTS)
    gain = rstd
    if SAMPLE_SCALE:
        gain *= tl.load(sample_scale_ptr + b).to(tl.float32)

    x_ptr += b.to(tl.int64) * H * W * C
    y_ptr += b.to(tl.int64) * H * W * C
    channel_tiles = tl.cdiv(C, CHANNELS)
    tiles = tl.cdiv(H * W, PIXELS) * channel_tiles
    tiles_here = tl.cdiv(tiles, Y_PARTS)
    first = tl.program_id(1) * tiles_here
    count, y_mean, m2 = 0.0, 0.0, 0.0
    for tile in range(first, tl.minimum(first + tiles_here, tiles)):
        pixel = tile // channel_tiles * PIXELS + tl.arange(0, PIXELS)
        channel = tile % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
        mask = (pixel < H * W)[:, None] & (channel < C)[None, :]
        difference, x = _difference(x_ptr, shift, pixel, channel, mask, H, W, C, RADIUS)
        weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        y = (x + (gain * weight * scale)[None, :] * difference).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + pixel[:, None] * C + channel[None, :], y, mask=mask)
        count, y_mean, m2 = add_to_stats(y.to(tl.float32) - shift, mask, count, y_mean, m2)
    store_stats(y_stats_ptr, count, y_mean, m2, shift, Y_PARTS)


@triton.jit
def mix_backward_sums_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr,
    H, W, C,
    RADIUS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``grad (P(x) - x)`` per sample and channel; grid [B, parts, C tiles]."""
    b = tl.program_id(0)
    parts = tl.num_programs(1)
    shift = tl.load(moments_ptr + 3 * b)
    x_ptr += b.to(tl.int64) * H * W * C
    grad_ptr += b.to(tl.int64) * H * W * C
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    tiles = tl.cdiv(H * W, PIXELS)
    tiles_here = tl.cdiv(tiles, parts)
    first = tl.program_id(1) * tiles_here
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for tile in range(first, tl.minimum(first + tiles_here, tiles)):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        mask = (pixel < H * W)[:, None] & (channel < C)[None, :]
        difference, _ = _difference(x_ptr, shift, pixel, channel, mask, H, W, C, RADIUS)
        index = pixel[:, None] * C + channel[None, :]
        grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
        total += tl.where(mask, grad * difference, 0.0)
    sums_ptr += (b * parts + tl.program_id(1)) * C
    tl.store(sums_ptr + channel, tl.sum(total, 0), mask=channel < C)


@triton.jit
def mix_backward_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr, weight_ptr, scale_ptr, sample_scale_ptr, dx_ptr,
    H, W, C,
    RADIUS: tl.constexpr, SAMPLE_SCALE: tl.constexpr,
    ALL_CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input; grid [B, pixel tiles, C tiles]."""
    b = tl.program_id(0)
    shift, mean, rstd = load_moments(moments_ptr, b)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    every = tl.arange(0, ALL_CHANNELS)
    weights = tl.load(weight_ptr + every, mask=every < C, other=0.0).to(tl.float32)
    scales = tl.load(scale_ptr + every, mask=every < C, other=0.0).to(tl.float32)
    sums = tl.load(sums_ptr + b * C + every, mask=every < C, other=0.0)
    d_rstd = gain * tl.sum(weights * scales * sums)

    x_ptr += b.to(tl.int64) * H * W * C
    grad_ptr += b.to(tl.int64) * H * W * C
    dx_ptr += b.to(tl.int64) * H * W * C
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < H * W)[:, None] & (channel < C)[None, :]
    index = pixel[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
    spread = _window_sum(grad_ptr, 0.0, pixel, channel, mask, H, W, C, RADIUS, True)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    numel = (H * W * C).to(tl.float32)
    dx = grad + (gain * rstd * weight * scale)[None, :] * (spread - grad)
    dx -= rstd * rstd * rstd * d_rstd / numel * (x - shift - mean)
    tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _mix_parts(x: Tensor) -> int:
    _, channels, height, width = x.shape
    tiles = triton.cdiv(height * width, PIXELS) * triton.cdiv(channels, CHANNELS)
    return count_parts(x.shape[0], tiles)


def _fake_pool_mix(x, weight, scale, sample_scale, pool_size, eps, dtype):
    moments = x.new_empty(x.shape[0], 3, dtype=torch.float32)
    stats = x.new_empty(x.shape[0], 4, _mix_parts(x), dtype=torch.float32)
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
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        PARTS=x_stats.shape[2], Y_PARTS=stats.shape[2],
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
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
    pixel_tiles = triton.cdiv(height * width, PIXELS)
    channel_tiles = triton.cdiv(channels, CHANNELS)
    sums = moments.new_empty(batch_size, count_parts(batch_size, pixel_tiles), channels)
    mix_backward_sums_kernel[batch_size, sums.shape[1], channel_tiles](
        grad, x, moments, sums, height, width, channels,
        RADIUS=pool_size // 2,
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
    )  # fmt: skip
    sums = sums.sum(1)
    dx = new_map(x, x.dtype)
    mix_backward_kernel[batch_size, pixel_tiles, channel_tiles](
        grad, x, moments, sums, weight, scale, sample_scale, dx, height, width, channels,
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        ALL_CHANNELS=triton.next_power_of_2(channels),
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
    )  # fmt: skip
    return dx, sums
