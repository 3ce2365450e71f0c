"""Write checkpoints in any layout, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .layouts import Weights, find_weights
from .reading import read_state_dict


def convert(
    source: str, layout: str, allow_pickle: bool = False
) -> tuple[Weights, dict[str, Tensor]]:
    """Read a checkpoint of any layout and name its tensors as another layout does.

    Args:
        source: See :func:`~mmpoolformer.checkpoints.read_checkpoint`.
        layout: Name in :data:`~mmpoolformer.checkpoints.LAYOUTS`.
        allow_pickle: See :func:`~mmpoolformer.checkpoints.read_checkpoint`.

    Returns:
        What was found, and the state dict in ``layout``; bit for bit the same numbers.

    Raises:
        CheckpointError: The source cannot be read or is none of a PoolFormer.
    """
    weights = find_weights(read_state_dict(source, allow_pickle))
    return weights, weights.to(layout)


def save_state_dict(content: dict, path: Path) -> None:
    """Write a state dict, or a dict of more, to a ``.safetensors`` or torch file.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + '.partial')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file({key: tensor.contiguous() for key, tensor in content.items()}, partial)
        else:
            torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
