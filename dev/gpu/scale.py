"""What is compared and timed: types of training, sizes of images, widths; less without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoolformer import ARCHS
from mmpoolformer.ops import first_use


class Setting(NamedTuple):
    """How a model is trained.

    Attributes:
        name: What reports call it.
        dtype: The type of parameters and images.
        autocast: The type of matrix products under autocast; ``None`` for none.
        scales_loss: Whether there is a ``GradScaler``.
    """

    name: str
    dtype: torch.dtype
    autocast: torch.dtype | None = None
    scales_loss: bool = False

    def context(self, device: str, cache_enabled: bool = True) -> torch.autocast:
        """What the forward runs under."""
        is_on = self.autocast is not None
        return torch.autocast(device, self.autocast, enabled=is_on, cache_enabled=cache_enabled)


SETTINGS = (
    Setting('float32', torch.float32),
    Setting('amp-bfloat16', torch.float32, torch.bfloat16),
    Setting('amp-float16', torch.float32, torch.float16, scales_loss=True),
    Setting('bfloat16', torch.bfloat16),
)


class Scale(NamedTuple):
    """How much is done.

    Attributes:
        device: ``cuda``, or ``cpu`` with Triton's interpreter.
        settings: How models are trained.
        arch: Of the backbone that is compared.
        stages: Of the backbone, as its ``out_indices``.
        image_sizes: Heights and widths of its images.
        batch: How many images it is compared with.
        widths: Channels by stage; the operations are tried at all of them.
        map_size: Samples, height and width of the maps on which they are compared.
        timed: Images and their size whose maps the operations are timed with.
        small: Batches, heights and widths between which fused blocks begin to pay.
        sanitized: Height and width of the image that is watched by compute-sanitizer.
        copied: Bytes of the tensor whose copy is timed.
        multiplied: Side of the matrices whose product is timed.
        compiler: Backend of ``torch.compile``.
    """

    device: str
    settings: tuple[Setting, ...]
    arch: str | dict
    stages: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]
    batch: int
    widths: tuple[tuple[int, ...], ...]
    map_size: tuple[int, int, int]
    timed: tuple[int, int]
    small: tuple[tuple[int, int, int], ...]
    sanitized: tuple[int, int]
    copied: int
    multiplied: int
    compiler: str

    @property
    def is_reduced(self) -> bool:
        return self.device != 'cuda'


FULL = Scale(
    device='cuda',
    settings=SETTINGS,
    arch='s12',
    stages=(0, 1, 2, 3),
    image_sizes=((512, 512), (800, 1333), (33, 97)),
    batch=2,
    widths=tuple(dict.fromkeys(tuple(arch.embed_dims) for arch in ARCHS.values())),
    map_size=(2, 25, 42),
    timed=(16, 512),
    small=(
        (1, 32, 32), (1, 64, 64), (1, 128, 128), (1, 224, 224), (4, 224, 224), (16, 224, 224),
        (4, 512, 512), (16, 512, 512),
    ),
    sanitized=(64, 96),
    copied=2**30,
    multiplied=8192,
    compiler='inductor',
)  # fmt: skip
REDUCED = Scale(
    device='cpu',
    settings=(SETTINGS[0], SETTINGS[2]),
    arch=dict(layers=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16)),
    stages=(0, 1),
    image_sizes=((32, 36),),
    batch=2,
    widths=((16, 16, 16, 16),),
    map_size=(2, 3, 5),
    timed=(1, 16),
    small=((1, 32, 32),),
    sanitized=(32, 32),
    copied=2**20,
    multiplied=64,
    compiler='aot_eager',
)


@contextmanager
def maps_of(samples: int, height: int, width: int) -> Iterator[None]:
    """Let the examples of operations be of this size."""
    names = 'SAMPLES', 'HEIGHT', 'WIDTH'
    before = [getattr(first_use, name) for name in names]
    try:
        for name, value in zip(names, (samples, height, width)):
            setattr(first_use, name, value)
        yield
    finally:
        for name, value in zip(names, before):
            setattr(first_use, name, value)


@contextmanager
def watched(only: str | None = None) -> Iterator[dict[tuple, bool]]:
    """Note every case in which an operation asks for its kernels, and the answer.

    Args:
        only: The one operation that may have them.

    Yields:
        Answers by name, types and sizes.
    """
    answers, ask = {}, first_use.agrees

    def agrees(name, device, types, *sizes):
        answers[name, types, sizes] = only in (None, name) and ask(name, device, types, *sizes)
        return answers[name, types, sizes]

    agrees._dynamo_marked_constant = True
    first_use.agrees = agrees
    try:
        yield answers
    finally:
        first_use.agrees = ask


def distance(actual: list[Tensor], exact: list[Tensor]) -> float:
    """From float64: the relative errors of all tensors, as one vector's length."""
    squares = (
        ((a.double() - e).norm() / e.norm().clamp_min(1e-30)) ** 2 for a, e in zip(actual, exact)
    )
    return float(sum(squares)) ** 0.5
