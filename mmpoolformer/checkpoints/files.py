"""Read one checkpoint file without executing anything in it."""

from __future__ import annotations

import io
import logging
import re
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from ..utils.errors import first_line
from .extent import check_extent
from .layouts import CheckpointError
from .pickles import read_pickle
from .stand_ins import (
    ForeignNameError,
    NotPlainError,
    PickleError,
    Storage,
    StorageType,
    check_key,
)

# How the files of torch before 1.6 begin: three pickles, the first two of these numbers.
OLD_MAGIC, OLD_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_file(path: Path, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a local file as it is, whatever its name says it is.

    Args:
        path: The file.
        allow_pickle: Read files that execute code when they are read. Only for files whose
            author you trust.
        map_location: Device of the tensors, by name; everything else means the CPU.

    Raises:
        CheckpointError: It cannot be read, is damaged or no checkpoint, or would execute code.
    """
    try:
        with open_regular(path) as file:
            content = _read(file, path, map_location)
            check_extent(content, path)
            return content
    except CodeInCheckpointError:
        if not allow_pickle:
            raise
    except CheckpointError:
        raise
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


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read, and nothing that would block or never end.

    Raises:
        CheckpointError: It is none, or cannot be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            return path.open('rb')
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    what = 'a folder' if stat.S_ISDIR(kind) else 'a device, a pipe or a socket'
    raise CheckpointError(f'{path} cannot be read: it is {what}, not a file')


def _read(file: BinaryIO, path: Path, map_location) -> object:
    start = file.read(512)
    file.seek(0)
    if not start:
        raise CheckpointError(f'{path} is empty')
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(f'{path} is a web page, not a checkpoint: download the file itself')
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the file: run git lfs pull')
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    if start[8:9] == b'{':
        return _read_safetensors(path, device)
    try:
        if zipfile.is_zipfile(file):
            return _Archive(file, path, device).read()
        if start[257:262] == b'ustar':  # not by opening it: it may be a bomb
            raise ForeignNameError('it is a tar archive of an old torch')
        file.seek(0)
        return _OldFile(file, path, device).read()
    except ForeignNameError as error:
        raise CodeInCheckpointError(path, error) from error
    except NotPlainError as error:
        raise CheckpointError(
            f'{path} has entries that are no plain tensors: one is {error}'
        ) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, zipfile.BadZipFile) and 'CRC' in str(error):
        return CheckpointError(f'{path} is damaged: wrong checksum ({first_line(error)})')
    return CheckpointError(
        f'{path} is truncated, damaged or no checkpoint ({type(error).__name__}: '
        f'{first_line(error)}). If it was downloaded, delete it and try again'
    )


def _read_safetensors(path: Path, device) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f'{path} needs: pip install safetensors') from error
    tensors = load_file(path, device=str(device))
    for index, key in enumerate(tensors):
        check_key(key, index)
    return tensors


class _TorchFile:
    """What torch's two formats share: storages that are named in a pickle.

    Together the storages are no larger than the file, as torch compresses nothing.
    """

    def __init__(self, file: BinaryIO, path: Path, device):
        self.file, self.path, self.device = file, path, device
        self.left = path.stat().st_size  # bytes
        self.contents: dict[str, Tensor] = {}

    def find_storage(self, name: Any) -> Storage:
        """The storage behind a persistent id: ``('storage', type, key, device, numbers)``."""
        if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != 'storage':
            raise PickleError('a persistent id that names no storage')
        _, kind, key, _, count, *view = name
        if type(kind) is not StorageType or type(key) is not str or view not in ([], [None]):
            raise PickleError('a persistent id that names no storage')
        check_key(key, 0)
        if type(count) is not int or count < 0:
            raise PickleError('a storage without a size')
        size = count * kind.dtype.itemsize
        if key not in self.contents:
            self.left -= size
            if self.left < 0:
                raise PickleError(f'storages that are larger than the file, one of {size} bytes')
            self.contents[key] = self.load(key, size)
        if len(self.contents[key]) != size:
            raise PickleError(f'a storage of {size} bytes, then of {len(self.contents[key])}')
        return Storage(self.contents[key], kind.dtype)

    def load(self, key: str, size: int) -> Tensor:
        """The bytes of a storage."""
        raise NotImplementedError


class _Archive(_TorchFile):
    """The zip archive that torch writes since 1.6: a pickle, and a record per storage."""

    def read(self) -> object:
        with zipfile.ZipFile(self.file) as self.archive:
            names = self.archive.namelist()
            if len(set(names)) < len(names):  # torch takes the first of them, zipfile the last
                raise PickleError('a zip archive with two records of one name')
            if any(name.endswith('constants.pkl') for name in names):
                raise ForeignNameError('it is a TorchScript archive')
            pickles = [name for name in names if re.fullmatch(r'[^/]*/data\.pkl', name)]
            if len(pickles) != 1:
                raise PickleError('a zip archive, but none of torch')
            self.folder = pickles[0].split('/')[0]
            if f'{self.folder}/byteorder' in names and self.record('byteorder') != b'little':
                raise PickleError('numbers whose bytes are in another order')
            return self.read_record()

    def read_record(self) -> object:
        content = self.record('data.pkl')
        return read_pickle(io.BytesIO(content), len(content), self.find_storage)

    def load(self, key: str, size: int) -> Tensor:
        content = self.record(f'data/{key}')
        if len(content) != size:
            raise PickleError(f'record {key!a} has {len(content)} bytes, not {size}')
        storage = torch.empty(size, dtype=torch.uint8)  # aligned, as torch's own
        storage.numpy()[:] = np.frombuffer(content, np.uint8)
        return storage.to(self.device)

    def record(self, name: str) -> bytes:
        """The content of a record; its checksum is checked."""
        info = self.archive.getinfo(f'{self.folder}/{name}')
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.path.stat().st_size:
            raise PickleError(f'record {name!a} is compressed, which torch never does')
        return self.archive.read(info)


class _OldFile(_TorchFile):
    """What torch wrote before 1.6: pickles, and the storages behind them. Read to the CPU."""

    def read(self) -> object:
        if self.read_next() != OLD_MAGIC or self.read_next() != OLD_PROTOCOL:
            raise PickleError('no file of torch')
        if (self.read_next() or {}).get('little_endian') is not True:
            raise PickleError('numbers whose bytes are in another order')
        content = self.read_next(self.find_storage)
        keys = self.read_next()
        if type(keys) is not list or len(keys) != len(self.contents):
            raise PickleError('other storages than its tensors name')
        for key in keys:
            check_key(key, 0)
        if set(keys) != set(self.contents):
            raise PickleError('other storages than its tensors name')
        for key in keys:
            self.fill(self.contents[key])
        return content

    def read_next(self, find_storage=None) -> Any:
        return read_pickle(self.file, self.path.stat().st_size, find_storage)

    def load(self, key: str, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def fill(self, storage: Tensor) -> None:
        self.file.read(8)  # the count of numbers again
        if self.file.readinto(storage.numpy()) != len(storage):
            raise PickleError('it ends too early')
