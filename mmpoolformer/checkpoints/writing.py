"""Write checkpoints in any layout, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..utils.files import replacing
from .layouts import CheckpointError
from .loading import CLASSIFIER_PARTS, check_complete
from .recognition import Weights, find_weights
from .sources import read_state_dict


def convert(
    source: str, layout: str, prefix: str = '', allow_pickle: bool = False
) -> tuple[Weights, dict[str, Tensor]]:
    """Read a checkpoint of any layout and name its tensors as another layout does.

    Args:
        source: See :func:`~mmpoolformer.checkpoints.read_checkpoint`.
        layout: Name in :data:`~mmpoolformer.checkpoints.LAYOUTS`.
        prefix: What the backbone's keys start with, if the file holds several.
        allow_pickle: See :func:`~mmpoolformer.checkpoints.read_checkpoint`.

    Returns:
        What was found, and the state dict in ``layout``; bit for bit the same numbers.

    Raises:
        CheckpointError: The source cannot be read or holds no whole backbone, or the layout
            has no names for a part of it.
    """
    weights = find_weights(read_state_dict(source, allow_pickle), prefix)
    check_complete(weights)
    nameless = [
        part.key(weights.layout)
        for part in weights.tensors
        if part.key(layout) is None and part.name not in (*CLASSIFIER_PARTS, 'out_norm')
    ]
    if nameless:
        raise CheckpointError(
            f'{source}: {weights.arch_name} cannot be written in the layout {layout}, which has no '
            f'names for {len(nameless)} of its tensors, such as {nameless[0]}: take official'
        )
    return weights, weights.to(layout)


def save_state_dict(content: dict, path: Path) -> None:
    """Write a state dict to a ``.safetensors`` or torch file.

    Args:
        content: Names and tensors; for a torch file also a dict that has them under
            ``state_dict``, and whatever else belongs to them.
        path: Its suffix tells the format.

    Raises:
        CheckpointError: The file cannot be written; nothing is left behind.
    """
    save = _save_safetensors if path.suffix == '.safetensors' else _save_torch
    try:
        with replacing(path) as partial:
            save(content, partial)
    except Exception as error:  # each format has exceptions of its own for a full disk and such
        raise CheckpointError(f'{path} cannot be written: {error}') from error


def _save_safetensors(content: dict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({key: own_copy(tensor) for key, tensor in content.items()}, path)
    path.chmod(0o644)  # as torch.save leaves its files, not for the owner alone


def _save_torch(content: dict, path: Path) -> None:
    copies = dict(content)
    if 'state_dict' in content:
        tensors = content['state_dict'].items()
        copies['state_dict'] = {name: own_copy(tensor) for name, tensor in tensors}
    for key, value in content.items():
        if isinstance(value, Tensor):
            copies[key] = own_copy(value)
    torch.save(copies, path)


def own_copy(tensor: Tensor) -> Tensor:
    """A tensor with a storage of its own, as a view would drag all of its base into the file."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
