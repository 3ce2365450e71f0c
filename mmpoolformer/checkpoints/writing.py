"""Write checkpoints in any layout, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.utils import apply_to
from torch import Tensor

from .layouts import CheckpointError, Weights, find_weights
from .loading import CLASSIFIER_PARTS, check_complete
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
    """Write a state dict, or a dict of more, to a ``.safetensors`` or torch file.

    Raises:
        CheckpointError: The file cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + '.partial')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file({key: own_copy(tensor) for key, tensor in content.items()}, partial)
            partial.chmod(0o644)  # as torch.save leaves its files, not for the owner alone
        else:
            torch.save(apply_to(content, _is_tensor, own_copy), partial)
        partial.replace(path)
    except Exception as error:  # each format has exceptions of its own for a full disk and such
        raise CheckpointError(f'{path} cannot be written: {error}') from error
    finally:
        partial.unlink(missing_ok=True)


def own_copy(tensor: Tensor) -> Tensor:
    """A tensor with a storage of its own, as a view would drag all of its base into the file."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor)
