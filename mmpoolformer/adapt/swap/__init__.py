"""Put PoolFormer into an existing mmdet or mmseg config."""

from ..edit import Change
from .api import Swapped, swap, swap_backbone, swap_changes
from .rules import REFUSED, SwapError

__all__ = [
    'REFUSED',
    'Change',
    'SwapError',
    'Swapped',
    'swap',
    'swap_backbone',
    'swap_changes',
]
