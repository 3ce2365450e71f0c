"""Token mixers: what a MetaFormer block leaves open.

Each maps ``[B, dim, H, W]`` to the same shape. One of your own is a module whose first
argument is ``dim``, registered with :data:`TOKEN_MIXERS` and imported by the config's
``custom_imports``.
"""

from __future__ import annotations

import torch
from mmengine.model import trunc_normal_init
from mmengine.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..archs import is_integer, is_number
from .layers import StarReLU, is_hooked

TOKEN_MIXERS = Registry('token mixer')


@TOKEN_MIXERS.register_module(name='identity')
class Identity(nn.Identity):
    """No mixing at all: the frame without a mixer (IdentityFormer, arXiv 2210.13452)."""

    def __init__(self, dim: int):
        super().__init__()


@TOKEN_MIXERS.register_module(name='pooling')
class Pooling(nn.Module):
    """Local average minus identity, the mixer of PoolFormer (arXiv 2111.11418, Eq. 4).

    The identity is subtracted because the block adds its input again. Positions
    outside the map do not count in the average.

    Args:
        dim: Channels; any.
        pool_size: Side of the averaging window, odd.
    """

    def __init__(self, dim: int | None = None, pool_size: int = 3):
        super().__init__()
        _check_odd('pool_size', pool_size)
        self.pool_size = pool_size
        self.pool = nn.AvgPool2d(
            pool_size, stride=1, padding=pool_size // 2, count_include_pad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x

    @property
    def is_plain(self) -> bool:
        """Whether it averages as it was built to, with no other pooling in its place."""
        side, pool = self.pool_size, self.pool
        return (
            type(pool) is nn.AvgPool2d
            and (pool.kernel_size, pool.stride, pool.padding) == (side, 1, side // 2)
            and not (pool.ceil_mode or pool.count_include_pad or pool.divisor_override)
            and not is_hooked(self, pool)
        )


@TOKEN_MIXERS.register_module(name='attention')
class Attention(nn.Module):
    """Multi-head self-attention over all positions (arXiv 1706.03762).

    It takes memory in proportion to the positions where PyTorch has a fused kernel.

    Args:
        dim: Channels, a multiple of ``head_dim``.
        head_dim: Channels of a head.
        proj_bias: Whether the output projection has a bias: the first paper's has.
    """

    def __init__(self, dim: int, head_dim: int = 32, proj_bias: bool = False):
        super().__init__()
        if not is_integer(head_dim) or head_dim < 1 or dim % head_dim:
            raise ValueError(
                f'head_dim={head_dim!r}: give a divisor of the {dim} channels of the stage'
            )
        self.num_heads = dim // head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        _init_as_published(self.qkv, self.proj)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, dim]
        heads = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, 32]
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        tokens = F.scaled_dot_product_attention(query, key, value)
        tokens = self.proj(tokens.transpose(1, 2).flatten(2))
        return tokens.transpose(1, 2).reshape(batch, dim, height, width)


@TOKEN_MIXERS.register_module(name='sep_conv')
class SepConv(nn.Module):
    """Inverted separable convolution (arXiv 1801.04381), the mixer of ConvFormer.

    Args:
        dim: Channels.
        expansion_ratio: Width between the two 1×1 convolutions over ``dim``.
        kernel_size: Side of the depthwise kernel, odd.
    """

    def __init__(self, dim: int, expansion_ratio: float = 2, kernel_size: int = 7):
        super().__init__()
        _check_odd('kernel_size', kernel_size)
        if not is_number(expansion_ratio) or int(expansion_ratio * dim) < 1:
            raise ValueError(f'expansion_ratio={expansion_ratio!r}: give a positive number')
        width = int(expansion_ratio * dim)
        self.pwconv1 = nn.Conv2d(dim, width, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(
            width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False
        )
        self.pwconv2 = nn.Conv2d(width, dim, 1, bias=False)
        _init_as_published(self.pwconv1, self.dwconv, self.pwconv2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class FixedSizeMixer(nn.Module):
    """A mixer with a weight per pair of positions, so for maps of one size only.

    Args:
        dim: Channels; any.
        size: Height and width of the map.
    """

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__()
        is_pair = isinstance(size, (list, tuple)) and len(size) == 2
        if not is_pair or not all(is_integer(side) and side > 0 for side in size):
            raise ValueError(f'size={size!r}: give height and width of the map, such as (14, 14)')
        self.size = tuple(size)

    def check_size(self, x: Tensor) -> None:
        if x.shape[-2:] != self.size:
            raise ValueError(
                f'{type(self).__name__} was made for maps of {self.size[0]}×{self.size[1]}, not '
                f'{x.shape[-2]}×{x.shape[-1]}: set input_size to the size of the images, crop or '
                'pad all of them to it, or take a mixer for any size, such as pooling'
            )


@TOKEN_MIXERS.register_module(name='spatial_mlp')
class SpatialMlp(FixedSizeMixer):
    """A linear layer over positions, the same for all channels (ResMLP, arXiv 2105.03404)."""

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__(dim, size)
        self.fc = nn.Linear(size[0] * size[1], size[0] * size[1], bias=False)
        _init_as_published(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x)
        return self.fc(x.flatten(2)).view_as(x)


@TOKEN_MIXERS.register_module(name='random')
class RandomMixing(FixedSizeMixer):
    """A frozen random matrix over positions (RandFormer, arXiv 2210.13452)."""

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__(dim, size)
        positions = size[0] * size[1]
        matrix = torch.rand(positions, positions).softmax(-1)
        self.random_matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x)
        return F.linear(x.flatten(2), self.random_matrix).view_as(x)


def build_mixer(cfg: dict, dim: int) -> nn.Module:
    """Build a mixer from a config whose type is resolved.

    Not by ``TOKEN_MIXERS.build``, which warns of every toolbox that has no such registry.
    """
    options = dict(cfg)
    return options.pop('type')(dim=dim, **options)


def is_of_one_size(name: str) -> bool:
    """Whether a registered mixer takes maps of one size only."""
    mixer = TOKEN_MIXERS.module_dict.get(name)
    return isinstance(mixer, type) and issubclass(mixer, FixedSizeMixer)


def _check_odd(name: str, value: int) -> None:
    if not is_integer(value) or value < 1 or value % 2 == 0:
        raise ValueError(f'{name}={value!r}: give an odd number, which keeps the size of the map')


def _init_as_published(*layers: nn.Module) -> None:
    for layer in layers:
        trunc_normal_init(layer, std=0.02)
