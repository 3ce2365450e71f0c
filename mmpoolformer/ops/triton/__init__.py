"""The Triton operations on feature maps, each kernel beside the function that launches it.

Feature maps are channels-last: ``[B, H·W, C]``, contiguous. Arithmetic is in
float32, the matrix products take 16-bit operands and add up in float32.
"""

from .channel_mlp import channel_mlp, channel_mlp_backward, mlp_fits, split_channels
from .group_norm import group_norm, group_norm_backward
from .pool_mix import pool_mix, pool_mix_backward
from .statistics import partial_stats

__all__ = [
    'channel_mlp',
    'channel_mlp_backward',
    'group_norm',
    'group_norm_backward',
    'mlp_fits',
    'partial_stats',
    'pool_mix',
    'pool_mix_backward',
    'split_channels',
]
