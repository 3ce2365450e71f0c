"""Checkpoints of every source: recognise, convert and load them."""

from .layouts import LAYOUTS, CheckpointError, find_weights
from .loading import inspect, load_pretrained
from .reading import read_checkpoint, read_state_dict, register_loaders
from .writing import convert, save_state_dict

__all__ = [
    'LAYOUTS',
    'CheckpointError',
    'convert',
    'find_weights',
    'inspect',
    'load_pretrained',
    'read_checkpoint',
    'read_state_dict',
    'register_loaders',
    'save_state_dict',
]
