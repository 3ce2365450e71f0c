"""Triton kernels of the pooling token mixer and the channel MLP.

Feature maps are channels-last: ``[B, H·W, C]``, contiguous. Arithmetic is in
float32, the matrix products take 16-bit operands and add up in float32.

Statistics of a sample travel as ``[B, 4, T]`` partial (count, mean, sum of squared
deviations, shift), one column per program that read a part of the sample. The
reader merges them (Chan, Golub and LeVeque, 1979). The mean is that of
``x - shift``, with one value of the sample as its shift: a large mean costs no
digits. The moments of a sample are ``[B, 3]``: shift, mean and 1 / standard deviation.
"""

import triton
import triton.language as tl


@triton.jit
def _add_to_stats(values, mask, count, mean, m2):
    """Merge a tile into a running (count, mean, sum of squared deviations)."""
    tile_count = tl.sum(mask.to(tl.float32))
    tile_mean = tl.sum(tl.where(mask, values, 0.0)) / tl.maximum(tile_count, 1.0)
    deviations = tl.where(mask, values - tile_mean, 0.0)
    total = count + tile_count
    delta = tile_mean - mean
    share = tile_count / tl.maximum(total, 1.0)
    m2 += tl.sum(deviations * deviations) + delta * delta * count * share
    return total, mean + delta * share, m2


@triton.jit
def _store_stats(stats_ptr, count, mean, m2, shift, PARTS: tl.constexpr):
    ptr = stats_ptr + tl.program_id(0) * 4 * PARTS + tl.program_id(1)
    tl.store(ptr, count)
    tl.store(ptr + PARTS, mean)
    tl.store(ptr + 2 * PARTS, m2)
    tl.store(ptr + 3 * PARTS, shift)


@triton.jit
def _load_stats(stats_ptr, moments_ptr, b, eps, PARTS: tl.constexpr):
    """Moments of sample ``b``; the sample's first program writes them."""
    ptr = stats_ptr + b * 4 * PARTS
    parts = tl.arange(0, PARTS)
    counts = tl.load(ptr + parts)
    means = tl.load(ptr + PARTS + parts)
    total = tl.sum(counts)
    mean = tl.sum(counts * means) / total
    deviations = means - mean
    m2 = tl.sum(tl.load(ptr + 2 * PARTS + parts) + counts * deviations * deviations)
    shift = tl.load(ptr + 3 * PARTS)
    rstd = 1.0 / tl.sqrt(m2 / total + eps)
    if tl.program_id(1) == 0:
        tl.store(moments_ptr + 3 * b, shift)
        tl.store(moments_ptr + 3 * b + 1, mean)
        tl.store(moments_ptr + 3 * b + 2, rstd)
    return shift, mean, rstd


@triton.jit
def _load_moments(moments_ptr, b):
    ptr = moments_ptr + 3 * b
    return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2)


@triton.jit
def stats_kernel(x_ptr, stats_ptr, numel, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Partial statistics of each sample; grid [B, PARTS]."""
    x_ptr += tl.program_id(0).to(tl.int64) * numel
    chunk = tl.cdiv(tl.cdiv(numel, PARTS), BLOCK) * BLOCK
    start = tl.program_id(1) * chunk
    shift = tl.load(x_ptr).to(tl.float32)
    count, mean, m2 = 0.0, 0.0, 0.0
    for offset in range(start, tl.minimum(start + chunk, numel), BLOCK):
        index = offset + tl.arange(0, BLOCK)
        mask = index < numel
        values = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
        count, mean, m2 = _add_to_stats(values - shift, mask, count, mean, m2)
    _store_stats(stats_ptr, count, mean, m2, shift, PARTS)


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
    shift, _, rstd = _load_stats(stats_ptr, moments_ptr, b, eps, PARTS)
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
        count, y_mean, m2 = _add_to_stats(y.to(tl.float32) - shift, mask, count, y_mean, m2)
    _store_stats(y_stats_ptr, count, y_mean, m2, shift, Y_PARTS)


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
    shift, mean, rstd = _load_moments(moments_ptr, b)
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


@triton.jit
def _gelu_cdf(h):
    return 0.5 * (1.0 + tl.math.erf(h * 0.7071067811865476))


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
    x_ptr, y_ptr, branch_ptr, branch, bias_ptr, scale_ptr, gain, row, channel, rows, C,
    SAVE_BRANCH: tl.constexpr,
):  # fmt: skip
    index = row[:, None] * C + channel[None, :]
    mask = (row < rows)[:, None]
    branch += tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    if SAVE_BRANCH:
        tl.store(branch_ptr + index, branch.to(branch_ptr.dtype.element_ty), mask=mask)
    scale = tl.load(scale_ptr + channel).to(tl.float32)[None, :]
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = x + gain * scale * branch
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mlp_kernel(
    x_ptr, stats_ptr, norm_weight_ptr, norm_bias_ptr, fc1_ptr, fc1_bias_ptr, fc2_ptr, fc2_bias_ptr,
    scale_ptr, sample_scale_ptr, y_ptr, moments_ptr, branch_ptr,
    rows, eps,
    PARTS: tl.constexpr, SAMPLE_SCALE: tl.constexpr, SAVE_BRANCH: tl.constexpr,
    C: tl.constexpr, C_A: tl.constexpr, C_B: tl.constexpr,
    HIDDEN: tl.constexpr, ROWS: tl.constexpr, HIDDEN_TILE: tl.constexpr,
):  # fmt: skip
    """``y = x + scale · fc2(GELU(fc1(norm(x))))``; grid [B, row tiles].

    A program keeps its rows of the input and of the output on the chip and walks
    through the hidden units, so the hidden tensor is never in memory. Tiles have
    power-of-two sides: ``C`` is split into ``C_A + C_B``.
    """
    b = tl.program_id(0)
    shift, mean, rstd = _load_stats(stats_ptr, moments_ptr, b, eps, PARTS)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    offset = b.to(tl.int64) * rows * C
    x_ptr += offset
    y_ptr += offset
    branch_ptr += offset
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
        hidden = (hidden * _gelu_cdf(hidden)).to(dtype)
        out_a = tl.dot(
            hidden, tl.trans(tl.load(fc2_ptr + a[:, None] * HIDDEN + unit[None, :])), out_a
        )
        if C_B > 0:
            out_b = tl.dot(
                hidden, tl.trans(tl.load(fc2_ptr + c[:, None] * HIDDEN + unit[None, :])), out_b
            )
    _add_branch(
        x_ptr, y_ptr, branch_ptr, out_a, fc2_bias_ptr, scale_ptr, gain, row, a, rows, C, SAVE_BRANCH
    )
    if C_B > 0:
        _add_branch(
            x_ptr, y_ptr, branch_ptr, out_b, fc2_bias_ptr, scale_ptr, gain, row, c, rows, C,
            SAVE_BRANCH,
        )  # fmt: skip


@triton.jit
def mlp_backward_inputs_kernel(
    grad_ptr, x_ptr, branch_ptr, moments_ptr, norm_weight_ptr, norm_bias_ptr, scale_ptr,
    sample_scale_ptr, normed_ptr, scaled_ptr, sums_ptr,
    rows, C,
    SAMPLE_SCALE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Operands of the matrix products; grid [B, parts, C tiles].

    Writes the normalised input, the gradient of the branch, and per sample and
    channel the partial sums of that gradient and of ``gradient · branch``.
    """
    b = tl.program_id(0)
    parts = tl.num_programs(1)
    shift, mean, rstd = _load_moments(moments_ptr, b)
    gain = 1.0
    if SAMPLE_SCALE:
        gain = tl.load(sample_scale_ptr + b).to(tl.float32)
    offset = b.to(tl.int64) * rows * C
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    dtype: tl.constexpr = normed_ptr.dtype.element_ty
    bias_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    scale_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
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
        grad = gain * tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
        tl.store(scaled_ptr + index, (grad * scale[None, :]).to(dtype), mask=mask)
        branch = tl.load(branch_ptr + index, mask=mask, other=0.0).to(tl.float32)
        bias_sum += grad * scale[None, :]
        scale_sum += grad * branch
    sums_ptr += (b * parts + tl.program_id(1)) * 2 * C
    tl.store(sums_ptr + channel, tl.sum(bias_sum, 0), mask=channel < C)
    tl.store(sums_ptr + C + channel, tl.sum(scale_sum, 0), mask=channel < C)


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
    cdf = _gelu_cdf(hidden)
    density = 0.3989422804014327 * tl.exp(-0.5 * hidden * hidden)
    d_hidden *= cdf + hidden * density
    index = row[:, None] * HIDDEN + unit[None, :]
    tl.store(hidden_ptr + index, (hidden * cdf).to(hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(d_hidden_ptr + index, d_hidden.to(d_hidden_ptr.dtype.element_ty), mask=mask)
    d_hidden = tl.where(mask, d_hidden, 0.0)
    tl.store(sums_ptr + row_tile * HIDDEN + unit, tl.sum(d_hidden, 0))


@triton.jit
def norm_backward_sums_kernel(
    grad_ptr, x_ptr, moments_ptr, sums_ptr,
    rows, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``grad`` and ``grad · normalised x``; grid [B, parts, C tiles]."""
    b = tl.program_id(0)
    parts = tl.num_programs(1)
    shift, mean, rstd = _load_moments(moments_ptr, b)
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
    shift, mean, rstd = _load_moments(moments_ptr, b)
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
