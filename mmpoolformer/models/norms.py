"""Norms of the architectures, and what the rest of the model asks of a norm."""

from __future__ import annotations

from typing import NamedTuple

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..archs import Arch
from ..ops import group_norm
from .layers import is_hooked


@MODELS.register_module()
class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of ``[B, C, H, W]``."""

    _abbr_ = 'ln'

    def __init__(self, num_channels: int, eps: float = 1e-5, bias: bool = True):
        super().__init__(num_channels, eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class OneGroupNorm(nn.GroupNorm):
    """GroupNorm with one group, ``[B, C, H, W]``, to the last digit in every layout."""

    _abbr_ = 'gn'

    def __init__(self, num_channels: int, eps: float = 1e-5, bias: bool = True):
        super().__init__(1, num_channels, eps)
        if not bias:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == 'cpu' and not x.is_contiguous():
            return one_group_norm(self, x)
        return super().forward(x)


# Names of the norms by ``Arch.norm``.
TYPES = {'group': 'OneGroupNorm', 'channel': 'ChannelLayerNorm'}
# It runs over channels whatever the blocks' norms run over.
DOWNSAMPLE_NORM = dict(type='ChannelLayerNorm', eps=1e-6, bias=False)


class NormCfgs(NamedTuple):
    """Configs of the norms of an architecture."""

    block: dict
    out: dict
    downsample: dict | None

    @classmethod
    def of(cls, arch: Arch) -> NormCfgs:
        """Those that the fields of an architecture describe."""
        kind = TYPES[arch.norm]
        return cls(
            block=dict(type=kind, eps=arch.norm_eps, bias=arch.norm_bias),
            out=dict(type=kind, eps=arch.out_norm_eps),
            downsample=DOWNSAMPLE_NORM if arch.downsample_norm else None,
        )


# What the norm of a block is asked, be it one of these or another that norm_cfg names. A class of
# one's own that computes something else, or a hook, is asked nothing: the norm is called.


def is_over_one_group(norm: nn.Module) -> bool:
    """Whether it is GroupNorm with one group and its affine part, which the ops compute."""
    is_plain = _is_group_norm(norm) and not is_hooked(norm)
    return is_plain and norm.num_groups == 1 and norm.bias is not None


def is_over_channels(norm: nn.Module) -> bool:
    """Whether it takes the channels of a position, which lie together in channels-last."""
    return _computes(norm, ChannelLayerNorm)


def is_foldable(norm: nn.Module) -> bool:
    """Whether it has a weight per channel that a convolution behind it can take over."""
    return (_is_group_norm(norm) or is_over_channels(norm)) and norm.weight is not None


def _is_group_norm(norm: nn.Module) -> bool:
    return _computes(norm, nn.GroupNorm) or _computes(norm, OneGroupNorm)


def _computes(norm: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a norm is what calling one of that class is."""
    return type(norm).forward is kind.forward and 'forward' not in vars(norm)


def one_group_norm(norm: nn.Module, x: Tensor, stats: Tensor | None = None) -> Tensor:
    """Compute a norm that :func:`is_over_one_group` by the package's own operation."""
    return group_norm(x, norm.weight, norm.bias, norm.eps, stats)
