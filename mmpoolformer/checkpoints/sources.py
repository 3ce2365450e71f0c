"""Get checkpoints from wherever they are, and the state dict out of them."""

from __future__ import annotations

import re
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from torch import Tensor

from .files import first_line, read_file
from .layouts import CheckpointError
from .recognition import find_weights
from .stand_ins import TYPES

WRAPPERS = ('state_dict', 'model')
MOST_AXES, LONGEST_AXIS = 16, 2**31
# mmengine's names of models, and where it lists their URLs.
ZOOS = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'openmmlab': get_external_models,
    'open-mmlab': get_external_models,
}
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
    wrong = [repr(key) for key, value in checkpoint.items() if not _is_entry(key, value)]
    if wrong:
        raise CheckpointError(
            f'{source} has entries that are no plain tensors: {", ".join(wrong[:5])}'
        )
    return dict(checkpoint)


def read_checkpoint(source: str, allow_pickle: bool = False, map_location='cpu') -> object:
    """Read a checkpoint as it is.

    Args:
        source: A path; an http(s) URL, kept in torch's download cache under a name of its own;
            ``timm://NAME``; ``hf://OWNER/NAME``; or mmengine's ``torchvision://NAME`` and
            ``open-mmlab://NAME``. Formats are told apart by their content.
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
    elif path is None and scheme in ZOOS:
        return read_checkpoint(_zoo_url(source), allow_pickle, map_location)
    elif path is None:
        raise CheckpointError(
            f'{source}: unknown scheme {scheme}://; there are paths, http(s)://, timm://, hf://, '
            f'{", ".join(f"{zoo}://" for zoo in ZOOS)}. Fetch the file and give its path'
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


def register_loaders(replace: bool = False, allow_pickle: bool = False) -> None:
    """Let mmengine's ``load_from`` read what this module reads.

    Classification weights of any layout come back under ``backbone.``, where a detector's or
    a segmentor's backbone looks for them.

    Args:
        replace: Replace all of mmengine's own readers, which execute code in files that need it.
        allow_pickle: See :func:`read_checkpoint`.
    """

    def load_from_mmpoolformer(filename, map_location=None):
        return _for_whole_models(read_checkpoint(filename, allow_pickle, map_location), filename)

    schemes = ['timm://', 'hf://', r'https?://.*\.safetensors$', r'.*\.safetensors$']
    if replace:
        schemes += CheckpointLoader._schemes
    CheckpointLoader.register_scheme(schemes, load_from_mmpoolformer, force=True)


def _for_whole_models(checkpoint: object, source: str) -> dict:
    try:
        weights = find_weights(unwrap(checkpoint, source))
    except CheckpointError:
        weights = None  # another model's
    if weights and not weights.others and weights.has_classifier:
        return {'state_dict': {f'backbone.{key}': t for key, t in weights.to_own().items()}}
    if isinstance(checkpoint, dict) and 'state_dict' not in checkpoint:
        if 'model' in checkpoint:
            checkpoint = dict(checkpoint, state_dict=checkpoint['model'])
        elif checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
            checkpoint = {'state_dict': checkpoint}  # where mmengine's hooks look for it
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{source} holds {type(checkpoint).__name__}, not a checkpoint')
    names = checkpoint.get('state_dict')
    if isinstance(names, dict) and not all(isinstance(name, str) for name in names):
        raise CheckpointError(f'{source} has entries that are no plain tensors: nameless ones')
    if isinstance(checkpoint.get('meta'), dict):
        # mmcv's checkpoints have their config there, which mmengine executes when it resumes.
        meta = {key: value for key, value in checkpoint['meta'].items() if key != 'config'}
        checkpoint = dict(checkpoint, meta=meta)
    return checkpoint


def _is_entry(key, value) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
        and value.dtype in TYPES
        and value.ndim <= MOST_AXES
        and max(value.shape, default=0) < LONGEST_AXIS
    )


def _download(url: str) -> Path:
    """Download into torch's cache, with its progress bar.

    Names that end in a hash, as OpenMMLab's do, are mmengine's there, too. Others get one: two
    files may be called ``model.safetensors``.
    """
    try:
        name = Path(urlparse(url).path).name
    except ValueError as error:
        raise CheckpointError(f'{url} is no URL: {error}') from error
    if not re.search(r'[-_](?=\d*[a-f])[0-9a-f]{8,}\.\w+$', name):
        name = f'{sha256(url.encode()).hexdigest()[:16]}-{name}'
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
            f'{url} cannot be downloaded ({error}). Fetch it elsewhere and give its '
            'path in its place, to train as --cfg-options model.backbone.init_cfg.checkpoint=FILE, '
            'or train from random weights with model.backbone.init_cfg=None'
        ) from error


def _zoo_url(source: str) -> str:
    scheme, _, name = source.partition('://')
    try:
        return ZOOS[scheme]()[name]
    except Exception as error:  # unknown names, or a table that this torchvision does not have
        raise _not_fetched(source, error) from error


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
    if not re.fullmatch(r'[\w.-]+', name):  # timm would take folders and other people's code
        raise CheckpointError(f'timm://{name}: give the name of one of its models, or a path')
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # network, unknown names, …
        raise _not_fetched(f'timm://{name}', error) from error


def _not_imported(source: str, library: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{source} needs {library}, which cannot be imported ({first_line(error)}): '
        f'pip install -U {library}'
    )


def _not_fetched(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{source} cannot be fetched ({type(error).__name__}: {first_line(error)}). '
        'Check the name, or fetch the file elsewhere and give its path'
    )
