"""Statistics of samples, and the kernel that computes them.

Statistics of a sample travel as ``[B, 4, T]`` partial (count, mean, sum of squared
deviations, shift), one column per program that read a part of the sample. The
reader merges them (Chan, Golub and LeVeque, 1979). The mean is that of
``x - shift``, with one value of the sample as its shift: a large mean costs no
digits. The moments of a sample are ``[B, 3]``: shift, mean and 1 / standard deviation.
"""

# Triton reads the annotations of kernels, so they are not postponed here.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import channels_last, count_parts, operation

STATS_BLOCK = 4096


@triton.jit
def add_to_stats(values, mask, count, mean, m2):
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
def store_stats(stats_ptr, count, mean, m2, shift, PARTS: tl.constexpr):
    ptr = stats_ptr + tl.program_id(0) * 4 * PARTS + tl.program_id(1)
    tl.store(ptr, count)
    tl.store(ptr + PARTS, mean)
    tl.store(ptr + 2 * PARTS, m2)
    tl.store(ptr + 3 * PARTS, shift)


@triton.jit
def load_stats(stats_ptr, moments_ptr, b, eps, PARTS: tl.constexpr):
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
def load_moments(moments_ptr, b):
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
        count, mean, m2 = add_to_stats(values - shift, mask, count, mean, m2)
    store_stats(stats_ptr, count, mean, m2, shift, PARTS)


def _fake_stats(x):
    block_tiles = triton.cdiv(x.shape[1] * x.shape[2] * x.shape[3], STATS_BLOCK)
    return x.new_empty(x.shape[0], 4, count_parts(x.shape[0], block_tiles), dtype=torch.float32)


@operation('partial_stats', _fake_stats)
def partial_stats(x: Tensor) -> Tensor:
    """Returns partial statistics of each sample, ``[B, 4, parts]``."""
    x = channels_last(x)
    stats = _fake_stats(x)
    stats_kernel[x.shape[0], stats.shape[2]](
        x, stats, x.shape[1] * x.shape[2] * x.shape[3], PARTS=stats.shape[2], BLOCK=STATS_BLOCK
    )
    return stats
