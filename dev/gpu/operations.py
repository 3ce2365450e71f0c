"""Every operation that has kernels, at every width and type in which the backbones ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmpoolformer import PoolFormer
from mmpoolformer.ops import backend, first_use
from mmpoolformer.ops.measured import DIRECTIONS, case_name, pays

from .ceilings import measure, milliseconds
from .rules import error_ratio
from .scale import Scale, Setting, distance, maps_of, watched


class Case(NamedTuple):
    """An operation as a backbone uses it.

    Attributes:
        name: The operation.
        types: Of its inputs, as :func:`~mmpoolformer.ops.first_use.agrees` is asked.
        sizes: What its kernels are compiled for, the width first.
        stride: Of its maps, in pixels of the image.
    """

    name: str
    types: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    stride: int

    def label(self, direction: str) -> str:
        return case_name(self.sizes, self.types, direction)


def cases(scale: Scale, setting: Setting) -> list[Case]:
    """What backbones of all widths ask for in training, with and without the other kernels."""
    found = {}
    # A stage's second block gets what the first one returns, of another type under autocast.
    blocks = 1 if scale.is_reduced else 2
    for widths in scale.widths:
        arch = dict(layers=(blocks,) * len(widths), embed_dims=widths)
        model = PoolFormer(arch, token_mixing='fused', out_indices=scale.stages)
        model = model.to(scale.device, setting.dtype)
        image = torch.randn(1, 3, 32, 32, device=scale.device, dtype=setting.dtype)
        for only in (None, ''):
            with watched(only) as asked, setting.context(scale.device):
                model(image)
            for name, types, sizes in asked:
                stride = 4 * 2 ** widths.index(sizes[0])
                found.setdefault((name, types, sizes), Case(name, types, sizes, stride))
    return [case for case in found.values() if _is_covered(case, scale)]


def _is_covered(case: Case, scale: Scale) -> bool:
    covers = first_use.TRIALS[case.name].covers
    return backend.load() and covers(torch.device(scale.device), *case.sizes)


def compare(scale: Scale, setting: Setting) -> Iterator[dict]:
    """Distances from float64 of kernels and of PyTorch, outputs and gradients."""
    for case in cases(scale, setting):
        inputs = [t.to(scale.device) for t in _example(case, *scale.map_size)]
        typed = [t.to(dtype) for t, dtype in zip(inputs, case.types)]
        exact = _results(case, False, [t.double() for t in typed])
        with setting.context(scale.device):
            plain = distance(_results(case, False, typed), exact)
        triton = distance(_results(case, True, typed), exact)
        yield dict(
            operation=case.name, case=case.label('training'), pytorch=plain, triton=triton,
            ratio=error_ratio(triton, plain),
        )  # fmt: skip


def time(scale: Scale, setting: Setting) -> Iterator[dict]:
    """Milliseconds of kernels, of PyTorch, and at the least, per direction."""
    ceilings = measure(scale)
    images, side = scale.timed
    for case in cases(scale, setting):
        height = max(side // case.stride, 1)
        inputs = [
            t.to(scale.device, dtype).requires_grad_()
            for t, dtype in zip(_example(case, images, height, height), case.types)
        ]
        for direction in DIRECTIONS:
            steps = [_step(case, setting, scale, inputs, direction, on) for on in (True, False)]
            triton, pytorch = (milliseconds(step, scale.device) for step in steps)
            floor = _floor(steps[1], inputs, direction, case, ceilings)
            yield dict(
                operation=case.name, case=case.label(direction), triton=triton, pytorch=pytorch,
                floor=floor, over_floor=triton / floor, over_pytorch=triton / pytorch,
                used=pays(triton / pytorch),
            )  # fmt: skip


def _example(case: Case, samples: int, height: int, width: int) -> list[Tensor]:
    with maps_of(samples, height, width):
        inputs = first_use.TRIALS[case.name].example(torch.Generator().manual_seed(1), *case.sizes)
    return [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs]


def _results(case: Case, use_triton: bool, inputs: list[Tensor]) -> list[Tensor]:
    trial = first_use.TRIALS[case.name]
    return first_use._with_gradients(trial, use_triton, inputs, case.types, case.sizes)


def _step(
    case: Case, setting: Setting, scale: Scale, inputs: list[Tensor], direction: str, on: bool
) -> Callable[[], Tensor]:
    compute = first_use.TRIALS[case.name].compute

    def step():
        with setting.context(scale.device), torch.set_grad_enabled(direction == 'training'):
            y = compute(on, inputs, case.types, *case.sizes)
        if direction == 'training':
            torch.autograd.grad(y, inputs, y.detach())
        return y

    return step


def _floor(step: Callable, inputs: list[Tensor], direction: str, case: Case, rates: dict) -> float:
    """Milliseconds in which nothing can be faster: each map moved once, the products alone."""
    with FlopCounterMode(display=False) as counter:
        y = step()
    read, written = sum(t.nbytes for t in inputs), y.nbytes
    # The backward reads the inputs again and the gradient of the output.
    moved = read + written if direction == 'inference' else 3 * read + 2 * written
    product = str(case.types[-1]).removeprefix('torch.')
    return 1e3 * max(moved / rates['bytes'], counter.get_total_flops() / rates[product])
