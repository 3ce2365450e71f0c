"""PoolFormer backbones for OpenMMLab detection and segmentation.

``import mmpoolformer`` registers the backbones with every installed toolbox.
"""

from .adapt.own_data import OwnDataError, own_data_changes, use_dataset
from .adapt.swap import SwapError, swap_backbone, swap_changes
from .archs import ARCHS, METAFORMERS, Arch
from .checkpoints import CheckpointError, register_loaders
from .engine.layer_decay import MetaFormerLayerDecay
from .models import TOKEN_MIXERS, MetaFormer, PoolFormer
from .registry import register_backbones
from .version import __version__

__all__ = [
    'ARCHS',
    'METAFORMERS',
    'TOKEN_MIXERS',
    'Arch',
    'CheckpointError',
    'MetaFormer',
    'MetaFormerLayerDecay',
    'OwnDataError',
    'PoolFormer',
    'SwapError',
    '__version__',
    'export',
    'own_data_changes',
    'swap_backbone',
    'swap_changes',
    'use_dataset',
]

register_backbones()
register_loaders()


def __getattr__(name: str):
    """``export`` comes with mmengine's runner and evaluators, when it is first asked for."""
    if name != 'export':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .engine.export import export

    return export
