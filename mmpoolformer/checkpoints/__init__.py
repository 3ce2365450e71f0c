"""Checkpoints of every source: recognise, convert and load them."""

from .layouts import LAYOUTS, CheckpointError
from .loading import inspect, load_pretrained
from .recognition import find_weights
from .sources import (
    local_path,
    read_checkpoint,
    read_state_dict,
    register_loaders,
    unwrap,
)
from .writing import convert, save_state_dict

__all__ = [
    'LAYOUTS',
    'CheckpointError',
    'convert',
    'find_weights',
    'inspect',
    'load_pretrained',
    'local_path',
    'read_checkpoint',
    'read_state_dict',
    'register_loaders',
    'save_state_dict',
    'unwrap',
]
