"""PoolFormer backbones for OpenMMLab detection and segmentation.

``import mmpoolformer`` registers the backbones with every installed toolbox.
"""

from .archs import ARCHS, Arch
from .checkpoints import CheckpointError, register_loaders
from .poolformer import PoolFormer
from .registry import register_backbones
from .swap import SwapError, swap_backbone, swap_changes
from .version import __version__

__all__ = [
    'ARCHS',
    'Arch',
    'CheckpointError',
    'PoolFormer',
    'SwapError',
    '__version__',
    'swap_backbone',
    'swap_changes',
]

register_backbones()
register_loaders()
