"""What the device itself reaches: bytes copied and matrices multiplied per second."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from common import burst

from .scale import Scale

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def milliseconds(step: Callable, device: str) -> float:
    """The median time of a step on the device, whose cache is emptied before each."""
    if device != 'cuda':
        return statistics.median(burst(step, device))
    from triton.testing import do_bench

    return do_bench(step, warmup=20, rep=100, return_mode='median')


def measure(scale: Scale) -> dict:
    """Bytes and operations per second."""
    source = torch.randint(256, (scale.copied,), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    time = milliseconds(lambda: target.copy_(source), scale.device)
    found = dict(bytes=2 * scale.copied / time * 1e3)
    for dtype in TYPES:
        a, b = (torch.randn((scale.multiplied,) * 2, device=scale.device).to(dtype) for _ in 'ab')
        time = milliseconds(lambda a=a, b=b: a @ b, scale.device)
        found[str(dtype).removeprefix('torch.')] = 2 * scale.multiplied**3 / time * 1e3
    return found


def step(scale: Scale) -> Iterator[dict]:
    """The rows of the report."""
    for name, value in measure(scale).items():
        unit = 'TB/s, read and written' if name == 'bytes' else 'TFLOP/s'
        yield dict(ceiling='copy' if name == 'bytes' else f'product in {name}',
                   value=value / 1e12, unit=unit)  # fmt: skip
