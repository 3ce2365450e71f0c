"""Read checkpoint files from wherever they are, without executing anything in them."""

from __future__ import annotations

import logging
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ClassVar
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from torch import Tensor

from .layouts import CheckpointError, find_weights

WRAPPERS = ('state_dict', 'model')
# How torch's restricted unpickler, and ours, say that a pickle wants more than data.
NEEDS_CODE = re.compile(
    'unsupported (global|class)|unrecognized function|can only (build|create)|is blocked', re.I
)
HF_FILES = ('model.safetensors', 'pytorch_model.bin')


def read_state_dict(source: str, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a checkpoint and take the state dict out of its wrappers.

    Args:
        source: See :func:`read_checkpoint`.
        allow_pickle: See :func:`read_checkpoint`.

    Raises:
        CheckpointError: It cannot be read, holds no tensors, or holds something else among them.
    """
    return unwrap(read_checkpoint(source, allow_pickle), source)


def unwrap(checkpoint: object, source: str, wrappers: tuple[str, ...] = WRAPPERS) -> dict:
    """Take the state dict out of the dictionaries that training scripts put it in.

    Raises:
        CheckpointError: There is no state dict of names and plain tensors.
    """
    for wrapper in wrappers:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise CheckpointError(
            f'{source} holds {type(checkpoint).__name__}, not a state dict of names and tensors'
        )
    wrong = [str(key) for key, value in checkpoint.items() if not _is_entry(key, value)]
    if wrong:
        raise CheckpointError(
            f'{source} has entries that are no plain tensors: {", ".join(wrong[:5])}'
        )
    return dict(checkpoint)


def read_checkpoint(source: str, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a checkpoint as it is.

    Args:
        source: A path; an http(s) URL, kept in torch's download cache as mmengine does;
            ``timm://NAME``; or ``hf://OWNER/NAME``. ``.pth``, ``.pth.tar``, ``.bin`` and
            ``.safetensors`` files are told apart by their content.
        allow_pickle: Read files that execute code when they are read. Only for files whose
            author you trust.
        map_location: Device of the tensors.

    Raises:
        CheckpointError: There is no such file, it is damaged or no checkpoint, or it would
            execute code.
    """
    scheme, _, name = str(source).partition('://')
    path = local_path(source)
    if path is None and scheme in ('http', 'https'):
        path = _download(source)
    elif path is None and scheme == 'hf':
        path = _from_hub(name)
    elif path is None and scheme == 'timm':
        return _from_timm(name)
    elif path is None:
        raise CheckpointError(
            f'{source}: unknown scheme {scheme}://; there are paths, http(s)://, timm:// and hf://'
        )
    return read_file(path, allow_pickle, map_location)


def local_path(source: str) -> Path | None:
    """The path of a local file, or None for a source that is none."""
    path = str(source).removeprefix('file://')
    if '://' in path:
        return None
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f'{source}: {error}') from error


def read_file(path: Path, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a local file; see :func:`read_checkpoint`."""
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
            f'{path} executes code when it is read ({_first_line(reason)}), which is refused. '
            'If you trust its author: allow_pickle=True in init_cfg, --allow-pickle in tools/'
        )


def register_loaders(replace: bool = False, allow_pickle: bool = False) -> None:
    """Let mmengine's ``load_from`` read what this module reads.

    Classification weights of any layout come back under ``backbone.``, where a detector's or
    a segmentor's backbone looks for them.

    Args:
        replace: Replace mmengine's own readers of paths and URLs too, which execute code in
            files that need it. Its model-zoo schemes (``torchvision://``, …) stay as they are.
        allow_pickle: See :func:`read_checkpoint`.
    """

    def load_from_mmpoolformer(filename, map_location=None):
        return _for_whole_models(read_checkpoint(filename, allow_pickle, map_location), filename)

    schemes = ['timm://', 'hf://', r'https?://.*\.safetensors$', r'.*\.safetensors$']
    if replace:
        schemes += ['', 'http://', 'https://']
    CheckpointLoader.register_scheme(schemes, load_from_mmpoolformer, force=True)


def _for_whole_models(checkpoint: object, source: str) -> dict:
    try:
        weights = find_weights(unwrap(checkpoint, source))
    except CheckpointError:
        weights = None  # another model's
    if weights and not weights.others and any(part.name == 'head' for part in weights.tensors):
        named = weights.to('official').items()
        return {'state_dict': {f'backbone.{key}': tensor for key, tensor in named}}
    if isinstance(checkpoint, dict) and 'state_dict' not in checkpoint and 'model' in checkpoint:
        return dict(checkpoint, state_dict=checkpoint['model'])
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{source} holds {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint


def _is_entry(key, value) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
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
        f'{_first_line(error)}). If it was downloaded, delete it and try again'
    )


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [''])[0][:200]


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


def _download(url: str) -> Path:
    """Download into torch's cache, where mmengine looks too, with its progress bar."""
    try:
        name = Path(urlparse(url).path).name
    except ValueError as error:
        raise CheckpointError(f'{url} is no URL: {error}') from error
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    rank, world_size = get_dist_info()
    if rank == 0:
        _fetch(url, path)
    if world_size > 1:
        barrier()
    _fetch(url, path)  # on other machines, with caches of their own
    return path


def _fetch(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))  # written aside, then renamed
    except (OSError, ValueError, HTTPException) as error:
        raise CheckpointError(
            f'{url} cannot be downloaded ({error}). Fetch it elsewhere and give its path'
        ) from error


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except Exception as error:  # missing, too old or broken
        raise _not_imported(f'hf://{name}', 'huggingface_hub', error) from error
    problem = None
    for file in HF_FILES:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError as error:  # the next file may be there
            problem = error
        except Exception as error:  # network, no such repository, ill-formed names, …
            raise _not_fetched(f'hf://{name}', error) from error
    raise _not_fetched(f'hf://{name}', problem)


def _from_timm(name: str) -> dict[str, Tensor]:
    try:
        import timm
    except Exception as error:  # missing, or broken by its own dependencies
        raise _not_imported(f'timm://{name}', 'timm', error) from error
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # network, unknown names, …
        raise _not_fetched(f'timm://{name}', error) from error


def _not_imported(source: str, library: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{source} needs {library}, which cannot be imported ({_first_line(error)}): '
        f'pip install -U {library}'
    )


def _not_fetched(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{source} cannot be fetched ({type(error).__name__}: {_first_line(error)}). '
        'Check the name, or fetch the file elsewhere and give its path'
    )
