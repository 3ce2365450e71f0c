"""Where the Triton kernels pay: what was measured on GPUs, and the rules that decide by it.

``measured.json`` holds numbers alone, by device; ``dev/gpu_acceptance.py`` writes it. Of a device
that is not in it nothing is known, and whoever asks decides without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

TABLE = Path(__file__).with_name('measured.json')
# A kernel's distance from float64 over the plain definition's, at most.
MOST_ERROR = 1.1
# A kernel's time over PyTorch's, at most.
MOST_TIME = 0.95
DIRECTIONS = ('inference', 'training')  # a forward alone, or with its backward
SANITIZER = ('clean', 'hit', 'not run')


class TableError(Exception):
    """The table of measurements cannot be used."""


class Operation(NamedTuple):
    """What is known of an operation's kernels on a device.

    Attributes:
        error_ratio: The largest distance from float64, over that of the plain definition;
            ``None`` if not compared.
        sanitizer: One of :data:`SANITIZER`: what compute-sanitizer said.
        time_ratios: Time over PyTorch's, by :func:`case_name`.
    """

    error_ratio: float | None = None
    sanitizer: str = 'not run'
    time_ratios: Mapping[str, float] = {}

    @property
    def is_wrong(self) -> bool:
        return self.sanitizer == 'hit' or (self.error_ratio or 0) > MOST_ERROR


class Device(NamedTuple):
    """What is known of a device.

    Attributes:
        operations: By the names of :data:`~mmpoolformer.ops.first_use.TRIALS`.
        fused_pixels: For each of :data:`DIRECTIONS` the pixels of a batch of images from
            which fused blocks are the faster ones.
    """

    operations: Mapping[str, Operation] = {}
    fused_pixels: Mapping[str, int] = {}


# The rules ------------------------------------------------------------------------------------


def decide(devices: Mapping[str, Device], device: str, name: str, case: str) -> bool | None:
    """Whether an operation's kernels are used.

    Args:
        devices: What is known, by the names of devices.
        device: The name of the device that they would run on.
        name: The operation.
        case: What :func:`case_name` calls sizes, types and direction.

    Returns:
        ``False`` if its kernels are wrong on any device, or not measurably faster on this one,
        also as this case was not measured there; ``True`` if they are right and faster;
        ``None`` if nothing is known of them on this device, or not enough: what is fast
        but was not compared or not run under the sanitizer.
    """
    if any(_is_wrong(known, name) for known in devices.values()):
        return False
    if device not in devices or name not in devices[device].operations:
        return None
    operation = devices[device].operations[name]
    if not operation.time_ratios:
        return None
    if not pays(operation.time_ratios.get(case)):
        return False
    proven = operation.error_ratio is not None and operation.sanitizer == 'clean'
    return True if proven else None


def _is_wrong(known: Device, name: str) -> bool:
    return known.operations.get(name, Operation()).is_wrong


def pays(time_ratio: float | None) -> bool:
    """Whether a kernel that takes so much of PyTorch's time is used."""
    return time_ratio is not None and time_ratio <= MOST_TIME


def threshold(rows: Iterable[tuple[int, float, float]]) -> int:
    """The pixels from which fused blocks are never the slower ones.

    Args:
        rows: Pixels of a batch, the fused blocks' time and the plain ones'.

    Returns:
        ``0`` if they never are, the largest integer if they are at the largest size too.
    """
    rows = list(rows)
    slower = [pixels for pixels, fused, plain in rows if fused > plain]
    if not slower:
        return 0
    return min((pixels for pixels, *_ in rows if pixels > max(slower)), default=sys.maxsize)


def case_name(sizes: Iterable[int], types: Iterable[torch.dtype | str], direction: str) -> str:
    """What the table calls a case, such as ``64x3 float32+bfloat16 training``.

    Args:
        sizes: What the kernels are compiled for; first of all the width.
        types: Of the inputs and the matrix products, in their order.
        direction: One of :data:`DIRECTIONS`.
    """
    names = dict.fromkeys(str(dtype).removeprefix('torch.') for dtype in types)
    return f'{"x".join(map(str, sizes))} {"+".join(names)} {direction}'


# What was measured ----------------------------------------------------------------------------


def choice(name: str, device: torch.device, types: tuple, sizes: tuple) -> bool | None:
    """Whether the table is for (``True``), against (``False``) or without (``None``) kernels.

    Without gradients the forward counts alone.

    Raises:
        TableError: The table cannot be used.
    """
    return _choice(name, device, types, sizes, _direction())


def is_wrong(name: str) -> bool:
    """Whether the kernels of an operation were found wrong, on whatever device.

    Raises:
        TableError: The table cannot be used.
    """
    return any(_is_wrong(known, name) for known in load(TABLE).values())


def fused_pixels(device: torch.device) -> int:
    """The pixels of a batch of images from which fused blocks are the faster ones.

    Raises:
        TableError: The table cannot be used.
    """
    devices = load(TABLE)
    if not devices:
        return 0
    return devices.get(device_name(device), Device()).fused_pixels.get(_direction(), 0)


def _direction() -> str:
    return DIRECTIONS[torch.is_grad_enabled()]


@cache
def _choice(name, device, types, sizes, direction) -> bool | None:
    devices = load(TABLE)
    if not devices:
        return None
    return decide(devices, device_name(device), name, case_name(sizes, types, direction))


@cache
def device_name(device: torch.device) -> str:
    """What the table calls a device."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type


def forget() -> None:
    """Read the table anew when it is next asked for."""
    load.cache_clear()
    _choice.cache_clear()


@cache
def load(path: Path) -> dict[str, Device]:
    """Read a table.

    Raises:
        TableError: It cannot be read, or says what it cannot say.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _error(path, str(error)) from None
    problem = _problem(content)
    if problem:
        raise _error(path, problem)
    return {name: _device(device) for name, device in content['devices'].items()}


def _error(path: Path, problem: str) -> TableError:
    return TableError(
        f'{path}: {problem}. Bring back the file of this version, or write it anew with '
        '`python dev/gpu_acceptance.py tune`; MMPOOLFORMER_TRITON=0 does without'
    )


def _device(content: dict) -> Device:
    operations = {}
    for name, known in content['operations'].items():
        ratios = {
            case: times['triton'] / times['pytorch'] for case, times in known['cases'].items()
        }
        operations[name] = Operation(known['error_ratio'], known['sanitizer'], ratios)
    thresholds = {
        direction: threshold((row['pixels'], row['fused'], row['plain']) for row in rows)
        for direction, rows in content['backbone'].items()
    }
    return Device(operations, thresholds)


# Its form -------------------------------------------------------------------------------------


def _problem(content: Any) -> str | None:
    """What is wrong with the contents of a table, if anything."""
    try:
        for name, device in _entries(content, 'devices'):
            for op, known in _entries(device, 'operations', name):
                _check_operation(known, f'{name}, {op}')
            for direction, rows in _entries(device, 'backbone', name):
                _check_choice(direction, DIRECTIONS, f'{name}, backbone')
                _check_choice(type(rows), (list,), f'{name}, {direction}')
                for row in rows:
                    _check_numbers(row, ('pixels', 'fused', 'plain'), f'{name}, {direction}')
    except ValueError as error:
        return str(error)
    return None


def _check_operation(known: Any, where: str) -> None:
    cases = _entries(known, 'cases', where)
    _check_choice(known.get('sanitizer'), SANITIZER, f'{where}, sanitizer')
    if known.get('error_ratio', 0) is not None:
        _check_numbers(known, ('error_ratio',), where)
    for case, times in cases:
        _check_choice(case.split(' ')[-1], DIRECTIONS, f'{where}, {case}')
        _check_numbers(times, ('triton', 'pytorch'), f'{where}, {case}')


def _entries(parent: Any, key: str, where: str = 'the table') -> Iterable[tuple[str, Any]]:
    if not isinstance(parent, dict) or not isinstance(parent.get(key), dict):
        raise ValueError(f'{where} has no dictionary {key!r}')
    return parent[key].items()


def _check_choice(value: Any, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise ValueError(f'{where} is {value!r}, not one of {allowed}')


def _check_numbers(values: Any, keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise ValueError(f'{where}: {key!r} is {value!r}, not a positive number')
