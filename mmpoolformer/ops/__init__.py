"""The operations that make PoolFormer fast; the same numbers as the plain definition."""

from .channel_mlp import channel_mlp, channel_mlp_covers
from .group_norm import group_norm
from .pool_mix import pool_mix

__all__ = ['channel_mlp', 'channel_mlp_covers', 'group_norm', 'pool_mix']
