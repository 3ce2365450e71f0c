"""PoolFormer backbones for OpenMMLab detection and segmentation.

``import mmpoolformer`` registers the backbones with every installed toolbox.
"""

from .archs import ARCHS, Arch
from .checkpoints import CheckpointError, register_loaders
from .poolformer import PoolFormer
from .registry import register_backbones
from .version import __version__

__all__ = ['ARCHS', 'Arch', 'CheckpointError', 'PoolFormer', '__version__']

register_backbones()
register_loaders()
