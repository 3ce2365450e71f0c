"""Read one checkpoint file without executing anything in it."""

from __future__ import annotations

import logging
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from torch import Tensor

from .layouts import CheckpointError

# How torch's restricted unpickler, and ours, say that a pickle wants more than data.
NEEDS_CODE = re.compile(
    'unsupported (global|class)|unrecognized function|can only (build|create)|is blocked', re.I
)


def read_file(path: Path, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a local file as it is, whatever its name says it is.

    Args:
        path: The file.
        allow_pickle: Read files that execute code when they are read. Only for files whose
            author you trust.
        map_location: Device of the tensors.

    Raises:
        CheckpointError: It cannot be read, is damaged or no checkpoint, or would execute code.
    """
    try:
        with path.open('rb') as file:
            start = file.read(512)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    if not start:
        raise CheckpointError(f'{path} is empty')
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(f'{path} is a web page, not a checkpoint: download the file itself')
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the file: run git lfs pull')
    try:
        if start[8:9] == b'{':
            return _read_safetensors(path, map_location)
        _check_archive(path)
        return _read_torch(path, map_location)
    except CheckpointError as error:
        if not (allow_pickle and isinstance(error, CodeInCheckpointError)):
            raise
    except pickle.UnpicklingError as error:
        if not NEEDS_CODE.search(str(error)):
            raise _damaged(path, error) from error
        if not allow_pickle:
            raise CodeInCheckpointError(path, error) from error
    except Exception as error:  # whatever damaged bytes make the parsers raise
        raise _damaged(path, error) from error
    print_log(
        f'allow_pickle: EXECUTING the code inside {path}', logger='current', level=logging.WARNING
    )
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:  # the code may do anything, such as import what is not there
        raise _damaged(path, error) from error


class CodeInCheckpointError(CheckpointError):
    """A file that executes code when it is read."""

    def __init__(self, path: Path, reason: object):
        super().__init__(
            f'{path} executes code when it is read ({first_line(reason)}), which is refused. '
            'If you trust its author: allow_pickle=True in init_cfg, --allow-pickle in tools/'
        )


def _check_archive(path: Path) -> None:
    """Refuse TorchScript, whose code old versions of torch run, and check the checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('constants.pkl') for name in archive.namelist()):
                raise CodeInCheckpointError(path, 'it is a TorchScript archive')
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f'{path} is damaged: wrong checksum of {damaged}')
    elif tarfile.is_tarfile(path):
        raise CodeInCheckpointError(path, 'it is a tar archive of an old torch')


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{path} is truncated, damaged or no checkpoint ({type(error).__name__}: '
        f'{first_line(error)}). If it was downloaded, delete it and try again'
    )


def first_line(error: object) -> str:
    """The first line of an error's message, shortened."""
    line = (str(error).strip().splitlines() or [''])[0]
    line = re.sub(r'\x1b\[[0-9;]*m', '', line)  # colours
    return line.split(' Re-running `torch.load`')[0][:200]


def _read_safetensors(path: Path, map_location) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f'{path} needs: pip install safetensors') from error
    return load_file(path, device=str(map_location or 'cpu'))


def _read_torch(path: Path, map_location) -> object:
    """Unpickle tensors, plain containers and mmengine's training history, and nothing else."""
    admitted = _history_globals()
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        with torch.serialization.safe_globals([(value, key) for key, value in admitted.items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:  # nothing can be added to what this torch admits
        restricted = ModuleType('restricted_pickle')
        restricted.Unpickler = _HistoryUnpickler
        restricted.load = lambda file, **kwargs: _HistoryUnpickler(file, **kwargs).load()
        return torch.load(
            path, map_location=map_location, weights_only=False, pickle_module=restricted
        )


def _history_globals() -> dict[str, object]:
    """What mmengine's own checkpoints hold besides tensors: scalars and smoothed histories."""
    names = ('numpy.core.multiarray', 'numpy._core.multiarray')  # before and after numpy 2
    multiarray = import_module(names[digit_version(np.__version__) >= digit_version('2.0.0')])
    found = {
        'mmengine.logging.history_buffer.HistoryBuffer': _History,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        'builtins.getattr': _history_method,
        '__builtin__.getattr': _history_method,
    }
    for name in names:
        found[f'{name}._reconstruct'] = multiarray._reconstruct
        found[f'{name}.scalar'] = multiarray.scalar
    for name in ('float64', 'float32', 'int64', 'int32', 'uint32', 'bool'):
        kind = type(np.dtype(name))
        found[f'{kind.__module__}.{kind.__name__}'] = kind
    return found


class _History(HistoryBuffer):
    """A history as it comes out of a file: only its numbers are taken over."""

    def __setstate__(self, state):
        history = HistoryBuffer(max_length=int(state['max_length']))
        for field in ('_log_history', '_count_history'):
            if not isinstance(state[field], np.ndarray):
                raise pickle.UnpicklingError(f'{field} is no array')
            setattr(history, field, state[field])
        self.__dict__.update(history.__dict__)
        self.__class__ = HistoryBuffer


def _history_method(owner, name):
    """Stands in for ``getattr``, by which a history names its methods; they are set anew."""
    if owner is _History and isinstance(name, str):
        return name
    raise pickle.UnpicklingError(f'Unsupported global: getattr of {owner!r}')


class _HistoryUnpickler(pickle._Unpickler):
    """An unpickler that knows tensors and :func:`_history_globals`, for torch before 2.6."""

    TENSORS = frozenset(
        {
            'collections.OrderedDict',
            'collections.Counter',
            'torch._utils._rebuild_tensor',
            'torch._utils._rebuild_tensor_v2',
            'torch._utils._rebuild_parameter',
            'torch.Size',
            'torch.device',
            '_codecs.encode',
        }
    )
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        path = f'{module}.{name}'
        if path in _history_globals():
            return _history_globals()[path]
        if path in self.TENSORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'Unsupported global: {path}')

    def load_build(self):
        target = self.stack[-2]
        if not isinstance(target, (OrderedDict, _History, np.ndarray, np.dtype)):
            raise pickle.UnpicklingError(f'Can only build data, not {type(target).__name__}')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
