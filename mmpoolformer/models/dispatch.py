"""How a backbone computes: operation by operation or fused, and in which memory layout.

The numbers are the same in every case; only the time differs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import backend, measured
from ..ops.backend import is_compiling
from .arguments import check
from .norms import is_over_channels, is_over_one_group, one_group_norm

# How blocks compute their two halves: as the paper writes them, or the same with fewer passes,
# or what is faster of both.
TOKEN_MIXING = ('auto', 'fused', 'plain')
# Pixels of a batch of images from which fewer passes pay in inference on the CPU, about one of
# 200×200: below, the maps stay in its caches.
FUSED_PIXELS = 40_000
# Types in which oneDNN computes convolutions.
MKLDNN_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """How one forward computes.

    Attributes:
        fuse: Whether the blocks that can be fused are.
        all_fused: Whether these are all blocks; then the norms of the outputs are fused too.
        channels_last: Whether maps get channels in the last axis of memory.
        keeps_layout: Whether the outputs stay in the layout that they were computed in, as the
            caller's own is channels-last.
    """

    fuse: bool
    all_fused: bool
    channels_last: bool
    keeps_layout: bool


def plan_forward(model: nn.Module, x: Tensor) -> Plan:
    """Choose how a :class:`~mmpoolformer.MetaFormer` computes the features of ``x``."""
    keeps_layout = has_channels_last(x) or has_channels_last(model.patch_embed.proj.weight)
    fuse = model.token_mixing == 'fused'
    if model.token_mixing == 'auto':
        fuse = fusing_pays(x, keeps_layout)
    blocks = model.blocks
    all_fused = fuse and all(block.can_fuse for block in blocks)
    # PyTorch's GroupNorm copies there on CUDA; the fused path has its own.
    fits = all_fused or is_over_channels(blocks[0].norm1)
    return Plan(fuse, all_fused, fits and channels_last_pays(x), keeps_layout)


def has_channels_last(tensor: Tensor) -> bool:
    """Whether a convolution of or with it would return channels-last maps by itself."""
    is_channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return is_channels_last and not tensor.is_contiguous()


def fusing_pays(x: Tensor, has_channels_last_caller: bool) -> bool:
    """Whether fused blocks are the faster ones for these images."""
    if is_compiling():  # one compiled graph for all sizes (from torch 2.4 on)
        return True
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if backend.on_cuda(x):
        return not backend.reads_measurements() or pixels >= measured.fused_pixels(x.device)
    if x.device.type != 'cpu' or torch.is_grad_enabled():
        return True
    if has_channels_last_caller or not x.is_contiguous():
        return True
    return pixels >= FUSED_PIXELS


def channels_last_pays(x: Tensor) -> bool:
    """Whether convolutions run faster with channels in the last axis of memory."""
    return x.is_cuda or (x.device.type == 'cpu' and x.dtype in MKLDNN_TYPES)


def enter(x: Tensor, plan: Plan) -> Tensor:
    """Bring images into the layout of the plan."""
    return x.contiguous(memory_format=torch.channels_last) if plan.channels_last else x


def leave(x: Tensor, norm: nn.Module, plan: Plan) -> Tensor:
    """Normalise an output and bring it into the caller's layout."""
    fuse = plan.all_fused and is_over_one_group(norm)
    out = one_group_norm(norm, x) if fuse else norm(x)
    return out if plan.keeps_layout else out.contiguous()


def check_token_mixing(value: str, blocks: list[nn.Module]) -> None:
    """Check that a backbone of these blocks can compute as asked.

    Raises:
        ValueError: It cannot.
    """
    check(value, 'token_mixing', value in TOKEN_MIXING, f'one of {TOKEN_MIXING}')
    if value == 'fused' and not any(block.can_fuse for block in blocks):
        first = blocks[0]
        raise ValueError(
            "token_mixing='fused' needs a block with pooling, LayerScale and "
            "norm_cfg=dict(type='GN', num_groups=1) with its affine part, not "
            f'{type(first.token_mixer).__name__} and {type(first.norm1).__name__}: take '
            "token_mixing='plain', or leave it out"
        )
