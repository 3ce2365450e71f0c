"""Record a model as a graph."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from ..deploy import plain
from ..utils.errors import LaunchError, first_line, join
from .metadata import BACKBONE, OFFER_RAW, RAW
from .rewrites import for_graphs
from .wrappers import IMAGE

# A size at which no map has a side of one, no two sides are alike, and no side fills multiples.
EXAMPLE = (331, 461)
# Sides for which the conditions of a graph are tried, small, odd, usual and large.
TRIED = [32, 33, 48, 64, 65, 96, 128, 129, 160, 224, 256, 257, 320, 333, 427, 512, 640, 800, 1024,
         1333, 2048]  # fmt: skip
MOST_LEAST = 320  # a graph for larger images alone is not called one for all sizes


def record(wrapper: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """Record what a model computes.

    Args:
        wrapper: One of :mod:`.wrappers`, in evaluation mode.
        example: An image as the wrapper takes it.
        dynamic: Whether height and width stay open.

    Raises:
        LaunchError: The model asks its data for something in Python.
    """
    open_sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO} if dynamic else None
    with for_graphs(), plain(wrapper), torch.no_grad():
        try:
            return torch.export.export(
                wrapper, (example,), dynamic_shapes={IMAGE: open_sides}, strict=False
            )
        except LaunchError:
            raise
        except Exception as error:  # whatever the models of other people raise
            problem = (
                f'{type(wrapper.model).__name__} cannot be recorded as one graph: '
                f'{_operator_of_mmcv(error) or reason(error)}'
            )
            sentences = [problem, *_remedies(error, wrapper, dynamic)]
            raise LaunchError('. '.join(sentences)) from error


def _remedies(error: Exception, wrapper: nn.Module, dynamic: bool) -> Iterator[str]:
    if dynamic:
        if 'Sizes of tensors must match' in reason(error):  # of a neck that joins levels
            yield (
                '--cfg-options model.data_preprocessor.pad_size_divisor=32 makes sides multiples '
                'of the strides'
            )
        yield '--size may make a file, for one size'
    if wrapper.kind not in (RAW, BACKBONE):
        yield OFFER_RAW


def _operator_of_mmcv(error: Exception) -> str:
    """Which of mmcv's own operators an error came from, in words."""
    for frame in reversed(traceback.extract_tb(_first_cause(error).__traceback__)):
        path = Path(frame.filename)
        is_compiled = 'ext_module' in (frame.line or '')  # others there are plain PyTorch
        if is_compiled and path.parts[-3:-1] == ('mmcv', 'ops'):
            return f"{path.stem} is mmcv's own operator, which no graph has"
    return ''


def reason(error: Exception) -> str:
    """What an exporter says, without its advice to programmers."""
    cause = _first_cause(error)
    return f'{type(cause).__name__}: {first_line(cause)}'


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def sides(program: torch.export.ExportedProgram) -> tuple[list, list]:
    """Least and most of height and width that a recorded graph takes, ``None`` for no bound.

    Raises:
        LaunchError: It takes no range of sizes, which formats but PyTorch's would not notice.
    """
    (name,) = program.graph_signature.user_inputs
    (image,) = (node for node in program.graph.nodes if node.name == name)
    shape = image.meta['val'].shape[2:]
    if all(isinstance(side, int) for side in shape):
        return tuple([side, side] for side in shape)
    try:
        bounds = [program.range_constraints[side.node.expr] for side in shape]
    except (AttributeError, KeyError):  # one is a number by now
        sizes = zip(('height', 'width'), map(str, shape))
        only = join(f'{name}={side}' for name, side in sizes if side.isdigit()) or 'one size'
        raise LaunchError(f'the graph would hold only for {only}: export with --size') from None
    least = max(int(bound.lower) for bound in bounds)
    check = getattr(program.module(), '_guards_fn', None)  # no public name calls it alone
    if check is None:
        raise LaunchError(
            f'torch {torch.__version__} does not say for which sizes the graph holds (its folder, '
            f'{Path(torch.__file__).parent}, may have a name that it avoids): export with --size'
        )
    usable = [side for side in TRIED if side >= least]
    while usable:
        failed = next(_failures(check, usable), None)
        if failed is None:
            return [usable[0], None], [usable[0], None]
        usable = usable[1:]
        if usable and usable[0] > MOST_LEAST:
            break
    raise LaunchError(f'the graph would hold only where {first_line(failed)}: export with --size')


def _failures(check: nn.Module, usable: list[int]) -> Iterator[str]:
    """The conditions of a graph that one of the sizes does not meet."""
    for size in product(usable, usable):
        try:
            check(torch.empty(1, 3, *size, device='meta'))
        except AssertionError as error:
            yield first_line(error).removeprefix('Guard failed: ')
