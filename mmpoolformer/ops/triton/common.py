"""What the Triton operations share.

Each operation is a ``torch.library`` custom op with a fake implementation for
``torch.compile`` and ``torch.export``. Outside of them the function behind it is
called directly, because the dispatch of a custom op costs as much as a launch.
"""

from __future__ import annotations

from functools import wraps

import torch
import triton
from torch import Tensor

PROGRAMS = 1024  # enough to fill a large GPU several times over
# Tiles: what keeps a thread below 128 registers (ptxas, sm_90).
PIXELS = 32
CHANNELS = 64


def operation(name: str, fake):
    """Make a custom op of a function; returns the function that calls either."""

    def decorate(launch):
        @wraps(launch)  # the schema of the custom op is read off its signature
        def function(x, *args):
            # Triton launches on the current device, wherever the tensors are.
            with torch.cuda.device_of(x):
                return launch(x, *args)

        custom_op = torch.library.custom_op(f'mmpoolformer::{name}', function, mutates_args=())
        custom_op.register_fake(fake)

        def call(*args):
            return custom_op(*args) if torch.compiler.is_compiling() else function(*args)

        return call

    return decorate


def count_parts(batch_size: int, tiles: int) -> int:
    """Programs per sample: a power of two, as the merge of their results needs."""
    return min(
        triton.next_power_of_2(triton.cdiv(PROGRAMS, max(batch_size, 1))),
        triton.next_power_of_2(tiles),
    )


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def new_map(x: Tensor, dtype: torch.dtype, channels: int | None = None) -> Tensor:
    size = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)
