"""The Triton kernels as PyTorch operations on channels-last feature maps.

Each is a ``torch.library`` custom op with a fake implementation for
``torch.compile`` and ``torch.export``. Outside of them the function behind it is
called directly, because the dispatch of a custom op costs as much as a launch.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import kernels

PROGRAMS = 1024  # enough to fill a large GPU several times over
# Tiles: what keeps a thread below 128 registers (ptxas, sm_90).
PIXELS = 32
CHANNELS = 64
STATS_BLOCK = 4096
HIDDEN_ROWS = 128
HIDDEN_UNITS = 64
HIDDEN_STAGES = 2
HIDDEN_SHARED_MEMORY = 2 * HIDDEN_STAGES * 2 * (HIDDEN_ROWS + HIDDEN_UNITS) * 64


def _operation(name: str, fake):
    """Make a custom op of a function; returns the function that calls either."""

    def decorate(function):
        custom_op = torch.library.custom_op(f'mmpoolformer::{name}', function, mutates_args=())
        custom_op.register_fake(fake)

        def call(*args):
            return custom_op(*args) if torch.compiler.is_compiling() else function(*args)

        return call

    return decorate


def _parts(batch_size: int, tiles: int) -> int:
    """Programs per sample: a power of two, as the merge of their results needs."""
    return min(
        triton.next_power_of_2(triton.cdiv(PROGRAMS, max(batch_size, 1))),
        triton.next_power_of_2(tiles),
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _new_map(x: Tensor, dtype: torch.dtype, channels: int | None = None) -> Tensor:
    size = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _fake_stats(x):
    block_tiles = triton.cdiv(x.shape[1] * x.shape[2] * x.shape[3], STATS_BLOCK)
    return x.new_empty(x.shape[0], 4, _parts(x.shape[0], block_tiles), dtype=torch.float32)


@_operation('partial_stats', _fake_stats)
def partial_stats(x: Tensor) -> Tensor:
    """Returns partial statistics of each sample, ``[B, 4, parts]``."""
    x = _channels_last(x)
    stats = _fake_stats(x)
    kernels.stats_kernel[x.shape[0], stats.shape[2]](
        x, stats, x.shape[1] * x.shape[2] * x.shape[3], PARTS=stats.shape[2], BLOCK=STATS_BLOCK
    )
    return stats


def _mix_parts(x: Tensor) -> int:
    _, channels, height, width = x.shape
    tiles = triton.cdiv(height * width, PIXELS) * triton.cdiv(channels, CHANNELS)
    return _parts(x.shape[0], tiles)


def _fake_pool_mix(x, weight, scale, sample_scale, pool_size, eps, dtype):
    moments = x.new_empty(x.shape[0], 3, dtype=torch.float32)
    stats = x.new_empty(x.shape[0], 4, _mix_parts(x), dtype=torch.float32)
    return _new_map(x, dtype), moments, stats


@_operation('pool_mix', _fake_pool_mix)
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
    x = _channels_last(x)
    x_stats = partial_stats(x)
    y, moments, stats = _fake_pool_mix(x, weight, scale, sample_scale, pool_size, eps, dtype)
    kernels.mix_kernel[batch_size, stats.shape[2]](
        x, x_stats, weight, scale, sample_scale, y, moments, stats, height, width, channels, eps,
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        PARTS=x_stats.shape[2], Y_PARTS=stats.shape[2],
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
    )  # fmt: skip
    return y, moments, stats


def _fake_pool_mix_backward(grad, x, moments, weight, scale, sample_scale, pool_size):
    return _new_map(x, x.dtype), moments.new_empty(x.shape[0], x.shape[1])


@_operation('pool_mix_backward', _fake_pool_mix_backward)
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
    grad, x = _channels_last(grad), _channels_last(x)
    pixel_tiles = triton.cdiv(height * width, PIXELS)
    channel_tiles = triton.cdiv(channels, CHANNELS)
    sums = moments.new_empty(batch_size, _parts(batch_size, pixel_tiles), channels)
    kernels.mix_backward_sums_kernel[batch_size, sums.shape[1], channel_tiles](
        grad, x, moments, sums, height, width, channels,
        RADIUS=pool_size // 2,
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
    )  # fmt: skip
    sums = sums.sum(1)
    dx = _new_map(x, x.dtype)
    kernels.mix_backward_kernel[batch_size, pixel_tiles, channel_tiles](
        grad, x, moments, sums, weight, scale, sample_scale, dx, height, width, channels,
        RADIUS=pool_size // 2, SAMPLE_SCALE=sample_scale is not None,
        ALL_CHANNELS=triton.next_power_of_2(channels),
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=8,
    )  # fmt: skip
    return dx, sums


# Widest MLP whose output tile the registers hold: wider ones spill (ptxas, sm_90).
MAX_CHANNELS = 384


def mlp_fits(channels: int, hidden_dim: int, device: torch.device) -> bool:
    """Whether the MLP kernels take these widths and the chip has the shared memory for them."""
    chip = torch.cuda.get_device_properties(device)
    rows, units, _, stages = _mlp_tiles(channels)
    shared_memory = 2 * channels * (rows + 2 * stages * units) + 1024
    return (
        chip.major >= 8
        and split_channels(channels) is not None
        and hidden_dim % HIDDEN_UNITS == 0
        and max(shared_memory, HIDDEN_SHARED_MEMORY) <= chip.shared_memory_per_block_optin
    )


def split_channels(channels: int) -> tuple[int, int] | None:
    """Write a width as a power of two, or as the sum of two, each at least 16; else ``None``."""
    first = 1 << (channels.bit_length() - 1)
    second = channels - first
    one_power = second == 0
    two_powers = second >= 16 and second & (second - 1) == 0
    if not 16 <= channels <= MAX_CHANNELS or not (one_power or two_powers):
        return None
    return first, second


def _mlp_tiles(channels: int) -> tuple[int, int, int, int]:
    """Rows of a tile, hidden units of a step, warps and pipeline stages."""
    if channels <= 128:
        return 128, 64, 8, 2
    return (64, 64, 8, 2) if channels <= 256 else (64, 32, 8, 2)


def _fake_channel_mlp(
    x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale, eps,
    dtype, save_branch,
):  # fmt: skip
    moments = stats.new_empty(x.shape[0], 3)
    branch = _new_map(x, fc1.dtype) if save_branch else x.new_empty(0, dtype=fc1.dtype)
    return _new_map(x, dtype), moments, branch


@_operation('channel_mlp', _fake_channel_mlp)
def channel_mlp(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor,
    fc2: Tensor,
    fc2_bias: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save_branch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, the moments ``[B, 3]`` of ``x``, and the branch before LayerScale."""
    batch_size, channels, height, width = x.shape
    x = _channels_last(x)
    y, moments, branch = _fake_channel_mlp(
        x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale, eps,
        dtype, save_branch,
    )  # fmt: skip
    first, second = split_channels(channels)
    rows, hidden_tile, warps, stages = _mlp_tiles(channels)
    kernels.mlp_kernel[batch_size, triton.cdiv(height * width, rows)](
        x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale,
        y, moments, branch, height * width, eps,
        PARTS=stats.shape[2], SAMPLE_SCALE=sample_scale is not None, SAVE_BRANCH=save_branch,
        C=channels, C_A=first, C_B=second, HIDDEN=fc1.shape[0],
        ROWS=rows, HIDDEN_TILE=hidden_tile, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y, moments, branch


def _fake_channel_mlp_backward(
    grad, x, branch, moments, norm_weight, norm_bias, fc1, fc1_bias, fc2, scale, sample_scale
):
    per_channel = moments.new_empty(x.shape[1])
    return (
        _new_map(x, x.dtype),
        per_channel,
        per_channel.clone(),
        moments.new_empty(fc1.shape),
        moments.new_empty(fc1.shape[0]),
        moments.new_empty(fc2.shape),
        per_channel.clone(),
        per_channel.clone(),
    )


@_operation('channel_mlp_backward', _fake_channel_mlp_backward)
def channel_mlp_backward(
    grad: Tensor,
    x: Tensor,
    branch: Tensor,
    moments: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor,
    fc2: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of ``x``, both of the norm, of fc1, of fc2, and of ``scale``."""
    batch_size, channels, height, width = x.shape
    hidden_dim = fc1.shape[0]
    rows = height * width
    grad, x = _channels_last(grad), _channels_last(x)
    row_tiles, channel_tiles = triton.cdiv(rows, PIXELS), triton.cdiv(channels, CHANNELS)
    parts = _parts(batch_size, row_tiles)

    normed, scaled = _new_map(x, fc1.dtype), _new_map(x, fc1.dtype)
    branch_sums = moments.new_empty(batch_size, parts, 2, channels)
    kernels.mlp_backward_inputs_kernel[batch_size, parts, channel_tiles](
        grad, x, branch, moments, norm_weight, norm_bias, scale, sample_scale,
        normed, scaled, branch_sums, rows, channels,
        SAMPLE_SCALE=sample_scale is not None, ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    d_fc2_bias, d_scale = (branch_sums[:, :, i].sum((0, 1)) for i in range(2))

    # The hidden units of this one block, recomputed, and their gradient.
    all_row_tiles = triton.cdiv(batch_size * rows, HIDDEN_ROWS)
    hidden, d_hidden = _new_map(x, fc1.dtype, hidden_dim), _new_map(x, fc1.dtype, hidden_dim)
    hidden_sums = moments.new_empty(all_row_tiles, hidden_dim)
    kernels.mlp_backward_hidden_kernel[(all_row_tiles * (hidden_dim // HIDDEN_UNITS),)](
        normed, scaled, fc1, fc1_bias, fc2, hidden, d_hidden, hidden_sums, batch_size * rows,
        C=channels, HIDDEN=hidden_dim, ROWS=HIDDEN_ROWS, UNITS=HIDDEN_UNITS,
        INNER=min(64, channels & -channels), num_warps=8, num_stages=HIDDEN_STAGES,
    )  # fmt: skip
    d_fc1_bias = hidden_sums.sum(0)

    normed, scaled, hidden, d_hidden = map(_as_rows, (normed, scaled, hidden, d_hidden))
    d_fc1 = _mm_float32(d_hidden.t(), normed)
    d_fc2 = _mm_float32(scaled.t(), hidden)
    d_normed = d_hidden @ fc1
    del hidden, d_hidden

    norm_sums = moments.new_empty(batch_size, parts, 2, channels)
    kernels.norm_backward_sums_kernel[batch_size, parts, channel_tiles](
        d_normed, x, moments, norm_sums, rows, channels, ROWS=PIXELS, CHANNELS=CHANNELS
    )
    norm_sums = norm_sums.sum(1)
    d_norm_bias, d_norm_weight = (norm_sums[:, i].sum(0) for i in range(2))
    dx = _new_map(x, x.dtype)
    kernels.norm_backward_kernel[batch_size, row_tiles, channel_tiles](
        grad, d_normed, x, moments, norm_sums, norm_weight, dx, rows, channels,
        ALL_CHANNELS=triton.next_power_of_2(channels), ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return dx, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale


def _as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """Product of 16-bit matrices, rounded to float32 only."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
