"""What stands for the classes and functions that a checkpoint's pickle names.

Each stand-in checks what it is given and makes tensors, NumPy numbers and plain containers of
it. None of them can be made to call something else.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

MAX_KEY = 2**60  # from here on integers are made that have the same hash
# Numbers can be chosen such that each meets all others in the table of hashes: in large containers
# they count up, as an optimizer's states do.
FEW_KEYS, MOST_GAPS = 64, 2**14
MAX_SIDE = 2**31
LONGEST_KEY = 512  # characters
NEWEST_VERSION = 2**16  # of a module; torch's count from 1


class ForeignNameError(Exception):
    """The pickle wants more than data: a name that is not admitted, or a call of something else."""


class NotPlainError(Exception):
    """The pickle holds tensors that are not plain numbers in memory."""


class PickleError(Exception):
    """The pickle is damaged, or none of torch's."""


# What is on the stack and never in what is read --------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """Stands for a function or class that a pickle names; ``make`` takes the arguments."""

    name: str
    make: Callable[..., Any]


@dataclass(frozen=True)
class Marker:
    """Stands for a class that a pickle only hands to a :class:`StandIn`."""

    name: str


@dataclass(frozen=True)
class StorageType:
    """Stands for ``torch.FloatStorage`` and its like."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """The bytes of a storage, and the type in which a tensor reads them."""

    content: Tensor  # uint8, one axis
    dtype: torch.dtype


@dataclass
class Unfilled:
    """An array or a history between the instruction that makes it and the one that fills it."""

    fill: Callable[[Any], Any]
    places: list[int] = field(default_factory=list)  # in the memo


class Arguments(tuple):
    """A tuple with such parts in it."""


INTERNAL = (StandIn, Marker, StorageType, Storage, Unfilled, Arguments)


def check_content(value) -> None:
    if isinstance(value, INTERNAL):
        raise PickleError(f'{type(value).__name__} where a value belongs')


# Tensors -----------------------------------------------------------------------------------


def rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """A view of a storage, which holds all of it: what is expanded needs more than the file has."""
    if not isinstance(storage, Storage) or metadata:
        raise PickleError('a tensor without a storage, or with flags')
    sizes, strides = _naturals(size), _naturals(stride)
    (offset,) = _naturals((offset,))
    numbers = storage.content.view(storage.dtype)
    if len(sizes) != len(strides):
        raise PickleError(f'a tensor of size {sizes} and stride {strides}')
    last = offset + sum((side - 1) * step for side, step in zip(sizes, strides))
    empty = 0 in sizes
    if not empty and (last >= len(numbers) or math.prod(sizes) > len(numbers)):
        raise PickleError(f'a tensor of size {sizes} in a storage of {len(numbers)} numbers')
    if empty:
        return numbers.new_empty(sizes)
    return numbers.as_strided(sizes, strides, offset)


def rebuild_parameter(data, requires_grad=True, hooks=None):
    if not isinstance(data, Tensor):
        raise PickleError('a parameter without a tensor')
    return data


def _naturals(values) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 64:
        raise PickleError('a size or stride that is no tuple')
    if not all(type(value) is int and 0 <= value < MAX_SIDE**2 for value in values):
        raise PickleError('a size or stride that is no number')
    return tuple(values)


def make_size(values=()):
    return torch.Size(_naturals(values))


def make_device(kind, index=None):
    known = type(kind) is str and kind in ('cpu', 'cuda', 'mps')
    if not known or not (index is None or (type(index) is int and 0 <= index < 1024)):
        raise PickleError('an unknown device')
    return torch.device(kind) if index is None else torch.device(kind, index)


# Containers and numbers --------------------------------------------------------------------


def make_ordered_dict():
    return OrderedDict()


def fill_ordered_dict(target: OrderedDict, state) -> OrderedDict:
    """Of a state dict's attributes, the versions of its modules are read, and copied.

    They tell old checkpoints, in torch's BatchNorm, mmcv's deformable convolutions and mmdet's
    anchor-free heads. PyTorch obeys the key beside them, ``assign_to_params_buffers``: it puts
    the file's tensors in the place of the parameters, and the optimizer trains those of before.
    """
    versions = state.get('_metadata') if type(state) is dict else None
    if type(versions) not in (dict, OrderedDict):
        raise ForeignNameError('it sets the state of an OrderedDict')
    if any(type(version) is not dict for version in versions.values()):
        raise PickleError('versions that are none')
    # Copied, as the memo can still change what the file has.
    target._metadata = OrderedDict(
        (name, {'version': version['version']})
        for name, version in versions.items()
        if type(name) is str and _is_version(version.get('version'))
    )
    return target


def _is_version(number) -> bool:
    return type(number) is int and 0 <= number < NEWEST_VERSION


def make_counter(counts=None):
    """Milestones of a scheduler: numbers, and how often each."""
    counts = {} if counts is None else counts
    if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
        raise PickleError('a Counter of something else than numbers')
    return Counter(counts)


def make_set(values=()):
    if type(values) is not list:
        raise PickleError('a set of something else than a list')
    for index, value in enumerate(values):
        check_key(value, index)
    return set(values)


def encode(text, encoding='utf-8'):
    """Bytes, as pickles of protocol 2 spell them."""
    if type(text) is not str or type(encoding) is not str or encoding not in ('latin1', 'latin-1'):
        raise PickleError('bytes in an unknown encoding')
    return text.encode('latin-1')


def make_empty_bytes():
    return b''


def check_key(key, before: int) -> None:
    """Refuse keys that are expensive to hash, or that a terminal would obey.

    Args:
        key: The key.
        before: How many keys the container has already.
    """
    if type(key) is str:
        if len(key) > LONGEST_KEY:
            raise PickleError(f'a name of {len(key)} characters: {key[:50]!a}…')
        if not key.isprintable():
            raise PickleError(f'a name with control characters: {ascii(key)[:100]}')
    elif type(key) in (int, bool):
        if abs(key) >= MAX_KEY or (before > FEW_KEYS and not 0 <= key < before + MOST_GAPS):
            raise PickleError(f'a key that is too large a number: {key}')
    elif type(key) is float and before > FEW_KEYS:
        raise PickleError('fractions as the keys of a large container')
    elif key is not None and type(key) is not float:
        raise PickleError(f'a key that is no name or number, but {type(key).__name__}')


# NumPy -------------------------------------------------------------------------------------

NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')
NDARRAY = Marker('numpy.ndarray')


def make_dtype(kind, align=False, copy=True):
    if type(kind) is not str or kind not in NUMBERS:
        what = ascii(kind)[:50] if type(kind) is str else type(kind).__name__
        raise ForeignNameError(f'numpy.dtype of {what}, which is no number')
    return np.dtype(f'<{kind}')


def fill_dtype(dtype: np.dtype, state) -> np.dtype:
    """Of its state only the order of bytes has a meaning for numbers."""
    order = state[1] if type(state) is tuple and len(state) > 1 else None
    if order not in ('<', '|', '='):
        raise PickleError('numbers whose bytes are in another order')
    return dtype


def make_scalar(dtype, content=None):
    return _numbers(dtype, content, ())[()]


def make_array(kind, shape=(0,), typecode=b'b'):
    if kind is not NDARRAY:
        raise ForeignNameError('numpy.core.multiarray._reconstruct of another class')
    return Unfilled(fill_array)


def fill_array(state) -> np.ndarray:
    if type(state) is not tuple or len(state) != 5:
        raise PickleError('an array without its state')
    _, shape, dtype, is_fortran, content = state
    return _numbers(dtype, content, _naturals(shape), 'F' if is_fortran is True else 'C')


def _numbers(dtype, content, shape: tuple[int, ...], order: str = 'C') -> np.ndarray:
    if not isinstance(dtype, np.dtype) or type(content) is not bytes:
        raise PickleError('an array without numbers')
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise PickleError(f'an array of shape {shape} in {len(content)} bytes')
    if not content:
        return np.empty(shape, dtype)
    # Copied, as the bytes object cannot be written to.
    return np.frombuffer(content, dtype).reshape(shape, order=order).copy()


# mmengine's smoothed histories -------------------------------------------------------------

HISTORY = Marker('mmengine.logging.history_buffer.HistoryBuffer')


def make_history() -> Unfilled:
    return Unfilled(fill_history)


def fill_history(state) -> HistoryBuffer:
    if type(state) is not dict:
        raise PickleError('a history without its state')
    values, counts = state.get('_log_history'), state.get('_count_history')
    length = state.get('max_length')
    if type(length) is not int or not 0 < length < MAX_SIDE:
        raise PickleError('a history of unknown length')
    for array in (values, counts):
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            raise PickleError('a history without numbers')
    if len(values) != len(counts) or len(values) > length:
        raise PickleError('a history with more values than counts')
    history = HistoryBuffer(max_length=length)
    history._log_history, history._count_history = values, counts
    return history


ONE_CYCLE = Marker('mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler')


def get_method(owner, name):
    """Stands in for ``getattr``, by which histories and schedulers name methods that they have."""
    if (owner is not HISTORY and owner is not ONE_CYCLE) or type(name) is not str:
        raise ForeignNameError('builtins.getattr of something else than a history')


# The table ---------------------------------------------------------------------------------


STORAGES = {
    'Float': torch.float32, 'Double': torch.float64, 'Half': torch.float16,
    'BFloat16': torch.bfloat16, 'Long': torch.int64, 'Int': torch.int32,
    'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8, 'Bool': torch.bool,
    'ComplexFloat': torch.complex64, 'ComplexDouble': torch.complex128,
}  # fmt: skip
# The types that all of PyTorch's operations know.
TYPES = frozenset(STORAGES.values())


def _names() -> dict[str, Any]:
    builtins = ('builtins', '__builtin__')  # Python 3's and protocol 2's
    multiarray = ('numpy.core.multiarray', 'numpy._core.multiarray')  # before numpy 2, and after
    stand_ins: dict[str, Callable] = {
        'collections.OrderedDict': make_ordered_dict,
        'collections.Counter': make_counter,
        'torch._utils._rebuild_tensor': rebuild_tensor,
        'torch._utils._rebuild_tensor_v2': rebuild_tensor,
        'torch._utils._rebuild_parameter': rebuild_parameter,
        'torch.Size': make_size,
        'torch.device': make_device,
        '_codecs.encode': encode,
        'numpy.dtype': make_dtype,
        **{f'{module}.getattr': get_method for module in builtins},
        **{f'{module}.set': make_set for module in builtins},
        **{f'{module}.bytes': make_empty_bytes for module in builtins},
        **{f'{module}._reconstruct': make_array for module in multiarray},
        **{f'{module}.scalar': make_scalar for module in multiarray},
    }
    return {
        **{name: StandIn(name, make) for name, make in stand_ins.items()},
        **{f'torch.{name}Storage': StorageType(dtype) for name, dtype in STORAGES.items()},
        **{str(dtype): dtype for dtype in TYPES},
        NDARRAY.name: NDARRAY,
        HISTORY.name: HISTORY,
        ONE_CYCLE.name: ONE_CYCLE,
    }


NAMES = _names()
NOT_PLAIN = {
    'torch._utils._rebuild_sparse_tensor': 'sparse',
    'torch._utils._rebuild_meta_tensor_no_storage': 'on the meta device',
    'torch._utils._rebuild_qtensor': 'quantized',
    'torch._utils._rebuild_nested_tensor': 'nested',
}
