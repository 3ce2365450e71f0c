"""Read checkpoint files from wherever they are, without executing anything in them."""

from __future__ import annotations

import logging
import pickle
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from torch import Tensor

from .layouts import CheckpointError

WRAPPERS = ('state_dict', 'model')
HF_FILES = ('model.safetensors', 'pytorch_model.bin')


def read_state_dict(source: str, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a checkpoint and take the state dict out of its wrappers.

    Args:
        source: See :func:`read_checkpoint`.
        allow_pickle: See :func:`read_checkpoint`.

    Raises:
        CheckpointError: It cannot be read, holds no tensors, or holds something else among them.
    """
    checkpoint = read_checkpoint(source, allow_pickle)
    while isinstance(checkpoint, dict):
        inner = next((checkpoint[key] for key in WRAPPERS if key in checkpoint), None)
        if not isinstance(inner, dict):
            break
        checkpoint = inner
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise CheckpointError(
            f'{source} holds {type(checkpoint).__name__}, not a state dict of names and tensors'
        )
    wrong = [str(key) for key, value in checkpoint.items() if not _is_entry(key, value)]
    if wrong:
        raise CheckpointError(f'{source} has entries that are no tensors: {", ".join(wrong[:5])}')
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
    if not name:
        path = Path(source).expanduser()
    elif scheme in ('http', 'https'):
        path = _download(source)
    elif scheme == 'hf':
        path = _from_hub(name)
    elif scheme == 'timm':
        return _from_timm(name)
    elif scheme == 'file':
        path = Path(name)
    else:
        raise CheckpointError(
            f'{source}: unknown scheme {scheme}://; there are paths, http(s)://, timm:// and hf://'
        )
    return read_file(path, allow_pickle, map_location)


def read_file(path: Path, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a local file; see :func:`read_checkpoint`."""
    try:
        with path.open('rb') as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
    if not start:
        raise CheckpointError(f'{path} is empty')
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(f'{path} is a web page, not a checkpoint: download the file itself')
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the file: run git lfs pull')
    try:
        if start[8:9] == b'{':
            return _read_safetensors(path, map_location)
        return _read_torch(path, map_location)
    except pickle.UnpicklingError as error:
        if not re.search('Unsupported (global|class)', str(error)):
            raise _damaged(path, error) from error
        if not allow_pickle:
            raise CheckpointError(
                f'{path} executes code when it is read ({_first_line(error)}), which is refused. '
                'If you trust its author: allow_pickle=True in init_cfg, --allow-pickle in tools/'
            ) from error
    except Exception as error:  # whatever damaged bytes make the parsers raise
        raise _damaged(path, error) from error
    print_log(
        f'allow_pickle: EXECUTING the code inside {path}', logger='current', level=logging.WARNING
    )
    return torch.load(path, map_location=map_location, weights_only=False)


def register_loaders(replace: bool = False, allow_pickle: bool = False) -> None:
    """Let mmengine's ``load_from`` read what this module reads.

    Args:
        replace: Replace mmengine's own readers of paths and URLs too, which execute code in
            files that need it.
        allow_pickle: See :func:`read_checkpoint`.
    """

    def load_from_mmpoolformer(filename, map_location=None):
        return read_checkpoint(filename, allow_pickle, map_location)

    schemes = ['timm://', 'hf://', r'.*\.safetensors$']
    if replace:
        schemes += ['', 'http://', 'https://']
    CheckpointLoader.register_scheme(schemes, load_from_mmpoolformer, force=True)


def _is_entry(key, value) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{path} is truncated, damaged or no checkpoint ({type(error).__name__}: '
        f'{_first_line(error)})'
    )


def _first_line(error: Exception) -> str:
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
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        'builtins.getattr': getattr,
        '__builtin__.getattr': getattr,
        'builtins.slice': slice,
        '__builtin__.slice': slice,
    }
    for name in names:
        found[f'{name}._reconstruct'] = multiarray._reconstruct
        found[f'{name}.scalar'] = multiarray.scalar
    for name in ('float64', 'float32', 'int64', 'int32', 'uint32', 'bool'):
        kind = type(np.dtype(name))
        found[f'{kind.__module__}.{kind.__name__}'] = kind
    return found


class _HistoryUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors and :func:`_history_globals`."""

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

    def find_class(self, module, name):
        path = f'{module}.{name}'
        if path in ('builtins.getattr', '__builtin__.getattr'):
            return _history_method
        if path in self.TENSORS:
            return super().find_class(module, name)
        if path in _history_globals():
            return _history_globals()[path]
        raise pickle.UnpicklingError(f'Unsupported global: {path}')


def _history_method(owner, name):
    if owner is HistoryBuffer and name in ('mean', 'max', 'min', 'current', 'statistics'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: getattr({owner!r}, {name!r})')


def _download(url: str) -> Path:
    """Download into torch's cache, where mmengine looks too, with its progress bar."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
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
    except OSError as error:
        raise CheckpointError(
            f'{url} cannot be downloaded ({error}). Fetch it elsewhere and give its path'
        ) from error


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise CheckpointError(f'hf://{name} needs: pip install huggingface_hub') from error
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
    except ImportError as error:
        raise CheckpointError(f'timm://{name} needs: pip install timm') from error
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # network, unknown names, …
        raise _not_fetched(f'timm://{name}', error) from error


def _not_fetched(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{source} cannot be fetched ({type(error).__name__}: {_first_line(error)}). '
        'Check the name, or fetch the file elsewhere and give its path'
    )
