"""The channel MLP and its backward as Triton kernels."""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import CHANNELS, PIXELS, channels_last, count_parts, new_map, operation
from .group_norm import norm_backward
from .statistics import load_moments, load_stats

HIDDEN_ROWS = 128
HIDDEN_UNITS = 64
HIDDEN_STAGES = 2
HIDDEN_SHARED_MEMORY = 2 * HIDDEN_STAGES * 2 * (HIDDEN_ROWS + HIDDEN_UNITS) * 64


@triton.jit
def gelu_tail(h):
    """``Φ(-|h|)`` of the normal distribution, within 1e-6: as a power of two.

    The exponent is a polynomial fitted to ``log2 Φ(-|h|)`` up to 5.5 and falls beyond. With it
    ``GELU(h) = max(h, 0) - |h| Φ(-|h|)``. Triton's erf takes three times the instructions.
    """
    z = tl.abs(h)
    exponent = -5.00259653e-4 * z + 7.28237893e-3
    exponent = exponent * z - 5.23432429e-2
    exponent = exponent * z - 0.459414073
    exponent = exponent * z - 1.15105205
    return tl.exp2(exponent * z - 1.00000186)


@triton.jit
def _normalised(
    x_ptr, row, channel, rows, C, shift, mean, rstd, weight_ptr, bias_ptr, dtype: tl.constexpr
):
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    x = tl.load(x_ptr + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    return ((x - shift - mean) * rstd * weight[None, :] + bias[None, :]).to(dtype)


@triton.jit
def _add_branch(
    x_ptr, y_ptr, branch, bias_ptr, scale_ptr, gain, row, channel, rows, C
):  # fmt: skip
    index = row[:, None] * C + channel[None, :]
    mask = (row < rows)[:, None]
    branch += tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    scale = tl.load(scale_ptr + channel).to(tl.float32)[None, :]
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = x + gain * scale * branch
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['parts'])
def mlp_kernel(
    x_ptr, stats_ptr, norm_weight_ptr, norm_bias_ptr, fc1_ptr, fc1_bias_ptr, fc2_ptr, fc2_bias_ptr,
    scale_ptr, sample_scale_ptr, y_ptr, moments_ptr,
    rows, eps, parts,
    SAMPLE_SCALE: tl.constexpr,
    C: tl.constexpr, C_A: tl.constexpr, C_B: tl.constexpr,
    HIDDEN: tl.constexpr, ROWS: tl.constexpr, HIDDEN_TILE: tl.constexpr,
):  # fmt: skip
    """``y = x + scale · fc2(GELU(fc1(norm(x))))``; grid [B, row tiles].

    A program keeps its rows of the input and of the output on the chip and walks
    through the hidden units, so the hidden tensor is never in memory. Tiles have
    power-of-two sides: ``C`` is split into ``C_A + C_B``.
    """
    b = tl.program_id(0)
    shift, mean, rstd = load_stats(stats_ptr, moments_ptr, b, eps, parts)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    offset = b.to(tl.int64) * rows * C
    x_ptr += offset
    y_ptr += offset
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dtype: tl.constexpr = fc1_ptr.dtype.element_ty

    a = tl.arange(0, C_A)
    x_a = _normalised(
        x_ptr, row, a, rows, C, shift, mean, rstd, norm_weight_ptr, norm_bias_ptr, dtype
    )
    out_a = tl.zeros([ROWS, C_A], tl.float32)
    if C_B > 0:
        c = C_A + tl.arange(0, C_B)
        x_b = _normalised(
            x_ptr, row, c, rows, C, shift, mean, rstd, norm_weight_ptr, norm_bias_ptr, dtype
        )
        out_b = tl.zeros([ROWS, C_B], tl.float32)
    for start in range(0, HIDDEN, HIDDEN_TILE):
        unit = start + tl.arange(0, HIDDEN_TILE)
        hidden = tl.dot(x_a, tl.trans(tl.load(fc1_ptr + unit[:, None] * C + a[None, :])))
        if C_B > 0:
            hidden = tl.dot(
                x_b, tl.trans(tl.load(fc1_ptr + unit[:, None] * C + c[None, :])), hidden
            )
        hidden += tl.load(fc1_bias_ptr + unit).to(tl.float32)[None, :]
        tail = tl.abs(hidden) * gelu_tail(hidden)
        hidden = (tl.maximum(hidden, 0.0) - tail).to(dtype)
        out_a = tl.dot(
            hidden, tl.trans(tl.load(fc2_ptr + a[:, None] * HIDDEN + unit[None, :])), out_a
        )
        if C_B > 0:
            out_b = tl.dot(
                hidden, tl.trans(tl.load(fc2_ptr + c[:, None] * HIDDEN + unit[None, :])), out_b
            )
    _add_branch(x_ptr, y_ptr, out_a, fc2_bias_ptr, scale_ptr, gain, row, a, rows, C)
    if C_B > 0:
        _add_branch(x_ptr, y_ptr, out_b, fc2_bias_ptr, scale_ptr, gain, row, c, rows, C)


@triton.jit
def mlp_backward_inputs_kernel(
    grad_ptr, x_ptr, moments_ptr, norm_weight_ptr, norm_bias_ptr, sample_scale_ptr, factor_ptr,
    normed_ptr, scaled_ptr, sums_ptr,
    rows, C,
    SAMPLE_SCALE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Operands of the matrix products; grid [B, parts, C tiles].

    Writes the normalised input, the gradient times each channel's factor, and partial sums of
    the latter per sample and channel.
    """
    b = tl.program_id(0)
    parts = tl.num_programs(1)
    shift, mean, rstd = load_moments(moments_ptr, b)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    offset = b.to(tl.int64) * rows * C
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    factor = gain * tl.load(factor_ptr + channel, mask=channel < C, other=0.0)
    dtype: tl.constexpr = normed_ptr.dtype.element_ty
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    tiles_here = tl.cdiv(tl.cdiv(rows, ROWS), parts)
    first = tl.program_id(1) * tiles_here
    for tile in range(first, first + tiles_here):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (channel < C)[None, :]
        index = offset + row[:, None] * C + channel[None, :]
        normed = _normalised(
            x_ptr + offset, row, channel, rows, C, shift, mean, rstd, norm_weight_ptr,
            norm_bias_ptr, dtype,
        )  # fmt: skip
        tl.store(normed_ptr + index, normed, mask=mask)
        grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
        scaled = grad * factor[None, :]
        tl.store(scaled_ptr + index, scaled.to(dtype), mask=mask)
        total += scaled
    sums_ptr += (b * parts + tl.program_id(1)) * C
    tl.store(sums_ptr + channel, tl.sum(total, 0), mask=channel < C)


@triton.jit
def mlp_backward_hidden_kernel(
    normed_ptr, scaled_ptr, fc1_ptr, fc1_bias_ptr, fc2_ptr, hidden_ptr, d_hidden_ptr, sums_ptr,
    rows,
    C: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Recomputed hidden units, their gradient and its column sums; grid [row · unit tiles]."""
    unit_tiles: tl.constexpr = HIDDEN // UNITS
    row_tile = tl.program_id(0) // unit_tiles
    unit = tl.program_id(0) % unit_tiles * UNITS + tl.arange(0, UNITS)
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None]
    inner = tl.arange(0, INNER)
    hidden = tl.zeros([ROWS, UNITS], tl.float32)
    d_hidden = tl.zeros([ROWS, UNITS], tl.float32)
    for start in range(0, C, INNER):
        channel = start + inner
        index = row[:, None] * C + channel[None, :]
        normed = tl.load(normed_ptr + index, mask=mask, other=0.0)
        fc1 = tl.load(fc1_ptr + unit[:, None] * C + channel[None, :])
        hidden = tl.dot(normed, tl.trans(fc1), hidden)
        scaled = tl.load(scaled_ptr + index, mask=mask, other=0.0)
        fc2 = tl.load(fc2_ptr + channel[:, None] * HIDDEN + unit[None, :])
        d_hidden = tl.dot(scaled, fc2, d_hidden)
    hidden += tl.load(fc1_bias_ptr + unit).to(tl.float32)[None, :]
    tail = gelu_tail(hidden)
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * hidden * hidden)
    d_hidden *= tl.where(hidden < 0.0, tail, 1.0 - tail) + hidden * density
    hidden = tl.maximum(hidden, 0.0) - tl.abs(hidden) * tail
    index = row[:, None] * HIDDEN + unit[None, :]
    tl.store(hidden_ptr + index, hidden.to(hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(d_hidden_ptr + index, d_hidden.to(d_hidden_ptr.dtype.element_ty), mask=mask)
    d_hidden = tl.where(mask, d_hidden, 0.0)
    tl.store(sums_ptr + row_tile * HIDDEN + unit, tl.sum(d_hidden, 0))


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
    x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale, eps, dtype
):
    return new_map(x, dtype), stats.new_empty(x.shape[0], 3)


@operation('channel_mlp', _fake_channel_mlp)
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
) -> tuple[Tensor, Tensor]:
    """Returns the output and the moments ``[B, 3]`` of ``x``."""
    batch_size, channels, height, width = x.shape
    x = channels_last(x)
    y, moments = _fake_channel_mlp(
        x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale, eps,
        dtype,
    )  # fmt: skip
    first, second = split_channels(channels)
    rows, hidden_tile, warps, stages = _mlp_tiles(channels)
    mlp_kernel[batch_size, triton.cdiv(height * width, rows)](
        x, stats, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale,
        y, moments, height * width, eps, stats.shape[2],
        SAMPLE_SCALE=sample_scale is not None,
        C=channels, C_A=first, C_B=second, HIDDEN=fc1.shape[0],
        ROWS=rows, HIDDEN_TILE=hidden_tile, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y, moments


def _fake_channel_mlp_backward(
    grad, x, moments, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale
):
    per_channel = moments.new_empty(x.shape[1])
    return (
        new_map(x, x.dtype),
        per_channel,
        per_channel.clone(),
        moments.new_empty(fc1.shape),
        moments.new_empty(fc1.shape[0]),
        moments.new_empty(fc2.shape),
        per_channel.clone(),
        per_channel.clone(),
    )


@operation('channel_mlp_backward', _fake_channel_mlp_backward)
def channel_mlp_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor,
    fc2: Tensor,
    fc2_bias: Tensor,
    scale: Tensor,
    sample_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of ``x``, both of the norm, of fc1, of fc2, and of ``scale``.

    The product of the gradient with the hidden units, which fc2's gradient is made of, is that
    of ``scale`` too, ``Σ gradient · (fc2 · hidden + bias)``: the branch is not kept for it.
    """
    batch_size, channels, height, width = x.shape
    rows = height * width
    grad, x = channels_last(grad), channels_last(x)
    row_tiles, channel_tiles = triton.cdiv(rows, PIXELS), triton.cdiv(channels, CHANNELS)
    parts = count_parts(batch_size, row_tiles)

    factor, share = _split_scale(scale)
    normed, scaled = new_map(x, fc1.dtype), new_map(x, fc1.dtype)
    sums = moments.new_empty(batch_size, parts, channels)
    mlp_backward_inputs_kernel[batch_size, parts, channel_tiles](
        grad, x, moments, norm_weight, norm_bias, sample_scale, factor,
        normed, scaled, sums, rows, channels,
        SAMPLE_SCALE=sample_scale is not None, ROWS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    sums = sums.sum((0, 1))

    fc2_share = (share[:, None] * fc2).to(fc2.dtype)
    d_normed, d_fc1, d_fc1_bias, product = _backward_of_products(
        normed, scaled, fc1, fc1_bias, fc2_share
    )
    del normed, scaled
    d_scale = ((product * fc2).sum(1) + sums * fc2_bias) / factor
    d_fc2, d_fc2_bias = product.mul_(share[:, None]), sums * share
    dx, d_norm_weight, d_norm_bias = norm_backward(grad, d_normed, x, moments, norm_weight)
    return dx, d_norm_weight, d_norm_bias, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, d_scale


def _split_scale(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the gradient and powers of two for fc2 whose product is ``scale``.

    Powers of two do not round. Those of the factors are that of the largest ``scale``, so the
    gradient leaves the range of 16 bits where it would with ``scale``, and a channel without
    ``scale`` has a factor to divide by.
    """
    mantissa, exponent = torch.frexp(scale.float())
    is_zero = scale == 0
    largest = exponent.masked_fill(is_zero, -999).max()
    largest = torch.where(largest > -999, largest, 0)
    factor = torch.ldexp(mantissa.masked_fill(is_zero, 0.5), largest)
    return factor, torch.ldexp(torch.ones_like(factor), exponent - largest).masked_fill(is_zero, 0)


def _backward_of_products(
    normed: Tensor, scaled: Tensor, fc1: Tensor, fc1_bias: Tensor, fc2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the normalised input as rows, of fc1 and its bias, and of fc2.

    The hidden units of this one block are computed again.
    """
    batch_size, channels, height, width = normed.shape
    rows, hidden_dim = batch_size * height * width, fc1.shape[0]
    row_tiles = triton.cdiv(rows, HIDDEN_ROWS)
    hidden = new_map(normed, fc1.dtype, hidden_dim)
    d_hidden = new_map(normed, fc1.dtype, hidden_dim)
    sums = fc1.new_empty(row_tiles, hidden_dim, dtype=torch.float32)
    mlp_backward_hidden_kernel[(row_tiles * (hidden_dim // HIDDEN_UNITS),)](
        normed, scaled, fc1, fc1_bias, fc2, hidden, d_hidden, sums, rows,
        C=channels, HIDDEN=hidden_dim, ROWS=HIDDEN_ROWS, UNITS=HIDDEN_UNITS,
        INNER=min(64, channels & -channels), num_warps=8, num_stages=HIDDEN_STAGES,
    )  # fmt: skip
    normed, scaled, hidden, d_hidden = map(_as_rows, (normed, scaled, hidden, d_hidden))
    d_fc1 = _mm_float32(d_hidden.t(), normed)
    d_fc2 = _mm_float32(scaled.t(), hidden)
    return d_hidden @ fc1, d_fc1, sums.sum(0), d_fc2


def _as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """Product of 16-bit matrices, rounded to float32 only."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
