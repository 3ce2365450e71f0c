"""The check before an operation first uses its Triton kernels.

Whether Triton finds a compiler, whether the chip takes what it compiles and whether the
numbers are right shows only where the kernels run. So they first compute a small map,
forward and backward, and PyTorch computes it in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import one_line
from . import backend, measured

OLDEST_CHIP = 8, 0  # compute capability: the kernels were compiled for 8.0 and 9.0

# Of the map: larger than a tile of rows, and a multiple of none.
SAMPLES, HEIGHT, WIDTH = 2, 9, 15
# Distance from float64, in steps of the coarsest type: what rounding makes is below one step
# in 16 bits, and of a few in float32.
STEPS = 4
LEAST_LIMIT = 1e-4


class Trial(NamedTuple):
    """How an operation is tried.

    Attributes:
        example: Makes its inputs ``(generator, *sizes)``, in float32 on the CPU.
        compute: The operation ``(use_triton, inputs, types, *sizes)``.
        covers: Whether the chip takes these kernels ``(device, *sizes)``.
    """

    example: Callable[..., list[Tensor]]
    compute: Callable[..., Tensor]
    covers: Callable[..., bool] = lambda *_: True


TRIALS: dict[str, Trial] = {}
_verdicts: dict[tuple, bool] = {}
_causes: set[str] = set()


def agrees(name: str, device: torch.device, types: tuple, *sizes: int) -> bool:
    """Whether an operation's kernels run on a device and compute what PyTorch computes.

    Not where they were measured to be wrong or no faster (:mod:`~mmpoolformer.ops.measured`).

    Args:
        name: Key of :data:`TRIALS`.
        types: Types of its inputs, in their order, and further ones that it takes.
        sizes: Whatever else its kernels are compiled for.
    """
    choice = partial(measured.choice, name, device, types, sizes)
    if not backend.is_switched_on(name, choice, partial(measured.is_wrong, name)):
        return False
    key = name, device, types, sizes
    if key not in _verdicts:
        if _is_captured(device):
            return False  # nothing may be waited for; a later call is tried
        # A thread has none of the caller's modes: of gradients, autocast, inference, tracing,
        # nor its hooks on saved tensors.
        with ThreadPoolExecutor(1) as pool:
            _verdicts[key] = pool.submit(_try, *key).result()
    return _verdicts[key]


# While torch.compile traces, the call happens, and the answer is part of what it compiles.
agrees._dynamo_marked_constant = True


def sample_scale(x: Tensor) -> Tensor:
    """Factors of the samples' branches in a trial."""
    return torch.linspace(0.5, 1.5, len(x), dtype=torch.float32, device=x.device)


def _is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph of what the caller does is being made."""
    if device.type != 'cuda' or not torch.cuda.is_initialized():
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _is_too_old(device: torch.device) -> bool:
    """Whether no kernel was ever compiled for such a chip: a compiler may end the process."""
    return device.type == 'cuda' and torch.cuda.get_device_capability(device) < OLDEST_CHIP


def _try(name: str, device: torch.device, types: tuple, sizes: tuple) -> bool:
    trial = TRIALS[name]
    if not backend.load():
        return False
    try:
        with torch.cuda.device(device if device.type == 'cuda' else -1):
            if _is_too_old(device) or not trial.covers(device, *sizes):
                return False
            cause = _difference(trial, device, types, sizes)
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compiler, the driver or the kernels raise
        cause = f'failed: {one_line(error)}'
    if cause and cause not in _causes:
        _causes.add(cause)
        case = ', '.join(str(part).removeprefix('torch.') for part in (*sizes, types[0]))
        backend.warn(f'PyTorch computes {name} ({case}) on {device}: its Triton kernels {cause}')
    return not cause


def _difference(trial: Trial, device: torch.device, types: tuple, sizes: tuple) -> str | None:
    """What is wrong with the kernels' numbers, if anything."""
    inputs = trial.example(torch.Generator().manual_seed(0), *sizes)
    inputs = [t.to(device, dtype) for t, dtype in zip(inputs, types)]
    actual = _with_gradients(trial, True, inputs, types, sizes)
    wide = (torch.float64,) * len(types)
    exact = _with_gradients(trial, False, [t.double() for t in inputs], wide, sizes)
    limit = max(LEAST_LIMIT, STEPS * max(torch.finfo(dtype).eps for dtype in types))
    errors = [
        float((a.double() - e).norm() / e.norm().clamp_min(1e-30)) for a, e in zip(actual, exact)
    ]
    if all(error <= limit for error in errors):  # not so for nan
        return None
    return f'are off by {max(errors):.1e}' if max(errors) < 1e6 else 'compute other numbers'


def _with_gradients(
    trial: Trial, use_triton: bool, inputs: list[Tensor], types: tuple, sizes: tuple
) -> list[Tensor]:
    """The output and the gradient of every input that has one."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = trial.compute(use_triton, inputs, types, *sizes)
    # Another gradient at each position, of numbers that 16 bits have.
    steps = torch.arange(y.numel(), device=y.device).remainder(7) - 3
    y.backward((steps / 4).to(y.dtype).view_as(y))
    return [y.detach(), *(t.grad for t in inputs)]
