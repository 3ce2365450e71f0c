"""PoolFormer backbones for OpenMMLab detection and segmentation.

``import mmpoolformer`` registers the backbones with every installed toolbox.
"""

from .archs import ARCHS, METAFORMERS, Arch
from .checkpoints import CheckpointError, register_loaders
from .metaformer import MetaFormer, PoolFormer
from .registry import register_backbones
from .swap import SwapError, swap_backbone, swap_changes
from .token_mixers import TOKEN_MIXERS
from .version import __version__

__all__ = [
    'ARCHS',
    'METAFORMERS',
    'TOKEN_MIXERS',
    'Arch',
    'CheckpointError',
    'MetaFormer',
    'PoolFormer',
    'SwapError',
    '__version__',
    'swap_backbone',
    'swap_changes',
]

register_backbones()
register_loaders()
