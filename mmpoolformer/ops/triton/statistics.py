"""Statistics of samples, and the kernel that computes them.

Statistics of a sample travel as ``[B, 4, T]`` partial (count, mean, sum of squared
deviations, shift), one column per program that read a part of the sample. The
reader merges them (Chan, Golub and LeVeque, 1979). The mean is that of
``x - shift``, with one value of the sample as its shift: a large mean costs no
digits. The moments of a sample are ``[B, 3]``: shift, mean and 1 / standard deviation.

Within a program each place of a tile has a mean and a sum of its own over the steps of a loop
(Welford, 1962), and the places are merged once, behind the loop.
"""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import PROGRAMS, channels_last, operation

STATS_BLOCK = 2048
# Columns of statistics that a reader merges at once.
MERGED: tl.constexpr = tl.constexpr(256)


@triton.jit
def add_step(values, steps, mean, m2):
    """Add a tile to the running means and sums of squared deviations of ``steps`` tiles."""
    delta = values - mean
    mean += delta * (1.0 / (steps + 1).to(tl.float32))
    return mean, m2 + delta * (values - mean)


@triton.jit
def merge_steps(steps, mask, mean, m2):
    """Merge the places of a tile after ``steps`` of :func:`add_step` into one (count, mean, sum
    of squared deviations)."""
    places, steps = tl.sum(mask.to(tl.float32)), steps * 1.0
    tile_mean = tl.sum(tl.where(mask, mean, 0.0)) / tl.maximum(places, 1.0)
    deviations = mean - tile_mean
    m2 += steps * deviations * deviations
    return places * steps, tile_mean, tl.sum(tl.where(mask, m2, 0.0))


@triton.jit
def merge(count, mean, m2, other_count, other_mean, other_m2):
    """Merge two (count, mean, sum of squared deviations)."""
    total = count + other_count
    delta = other_mean - mean
    share = other_count / tl.maximum(total, 1.0)
    return total, mean + delta * share, m2 + other_m2 + delta * delta * count * share


@triton.jit
def store_stats(stats_ptr, count, mean, m2, shift):
    """Write the column of this program; grid [B, parts]."""
    parts = tl.num_programs(1)
    ptr = stats_ptr + tl.program_id(0) * 4 * parts + tl.program_id(1)
    tl.store(ptr, count)
    tl.store(ptr + parts, mean)
    tl.store(ptr + 2 * parts, m2)
    tl.store(ptr + 3 * parts, shift)


@triton.jit
def load_stats(stats_ptr, moments_ptr, b, eps, parts):
    """Moments of sample ``b``; the sample's first program writes them."""
    ptr = stats_ptr + b * 4 * parts
    count, mean, m2 = 0.0, 0.0, 0.0
    for start in range(0, parts, MERGED):
        part = start + tl.arange(0, MERGED)
        mask = part < parts
        counts = tl.load(ptr + part, mask=mask, other=0.0)
        means = tl.load(ptr + parts + part, mask=mask, other=0.0)
        m2s = tl.load(ptr + 2 * parts + part, mask=mask, other=0.0)
        here = tl.sum(counts)
        mean_here = tl.sum(counts * means) / tl.maximum(here, 1.0)
        deviations = means - mean_here
        m2_here = tl.sum(m2s + counts * deviations * deviations)
        count, mean, m2 = merge(count, mean, m2, here, mean_here, m2_here)
    shift = tl.load(ptr + 3 * parts)
    rstd = 1.0 / tl.sqrt(m2 / count + eps)
    if tl.program_id(1) == 0:
        tl.store(moments_ptr + 3 * b, shift)
        tl.store(moments_ptr + 3 * b + 1, mean)
        tl.store(moments_ptr + 3 * b + 2, rstd)
    return shift, mean, rstd


@triton.jit
def load_moments(moments_ptr, b):
    ptr = moments_ptr + 3 * b
    return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2)


@triton.jit
def stats_kernel(x_ptr, stats_ptr, numel, BLOCK: tl.constexpr):
    """Partial statistics of each sample; grid [B, parts]."""
    x_ptr += tl.program_id(0).to(tl.int64) * numel
    shift = tl.load(x_ptr).to(tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    m2 = tl.zeros([BLOCK], tl.float32)
    whole = numel // BLOCK
    tiles = tl.cdiv(whole, tl.num_programs(1))
    first = tl.minimum(tl.program_id(1) * tiles, whole)
    last = tl.minimum(first + tiles, whole)
    place = tl.arange(0, BLOCK)
    for tile in range(first, last):
        values = tl.load(x_ptr + tile * BLOCK + place).to(tl.float32) - shift
        mean, m2 = add_step(values, tile - first, mean, m2)
    count, mean, m2 = merge_steps(last - first, place >= 0, mean, m2)
    # The first program also has what is left, less than a tile.
    index = whole * BLOCK + place
    mask = (index < numel) & (tl.program_id(1) == 0)
    rest = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32) - shift
    rest_count, rest_mean, rest_m2 = merge_steps(1, mask, rest, tl.zeros([BLOCK], tl.float32))
    count, mean, m2 = merge(count, mean, m2, rest_count, rest_mean, rest_m2)
    store_stats(stats_ptr, count, mean, m2, shift)


def _fake_stats(x):
    tiles = triton.cdiv(x.shape[1] * x.shape[2] * x.shape[3], STATS_BLOCK)
    parts = min(triton.cdiv(PROGRAMS, max(x.shape[0], 1)), tiles)
    return x.new_empty(x.shape[0], 4, parts, dtype=torch.float32)


@operation('partial_stats', _fake_stats)
def partial_stats(x: Tensor) -> Tensor:
    """Returns partial statistics of each sample, ``[B, 4, parts]``."""
    x = channels_last(x)
    stats = _fake_stats(x)
    stats_kernel[x.shape[0], stats.shape[2]](
        x, stats, x.shape[1] * x.shape[2] * x.shape[3], BLOCK=STATS_BLOCK
    )
    return stats
