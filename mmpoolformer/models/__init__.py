"""The backbones: MetaFormer, and PoolFormer as its case."""

from .metaformer import MetaFormer, PoolFormer
from .token_mixers import TOKEN_MIXERS

__all__ = ['TOKEN_MIXERS', 'MetaFormer', 'PoolFormer']
