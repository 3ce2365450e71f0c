"""Layers of a MetaFormer besides its norms and token mixers."""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)


class Conv2d(nn.Conv2d):
    """A convolution that trains faster on the CPU, with the same numbers.

    oneDNN's gradient of a bias takes as long as that of the weight, a sum a tenth of it.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trains = bias is not None and bias.requires_grad and torch.is_grad_enabled()
        # Under autocast, types differ; PyTorch's own convolution casts them.
        is_usual = self.dilation == (1, 1) and self.groups == 1 and self.padding_mode == 'zeros'
        if not trains or not is_usual or x.device.type != 'cpu':
            return super()._conv_forward(x, weight, bias)
        if x.dtype != weight.dtype or _autocasts():
            return super()._conv_forward(x, weight, bias)
        return _ConvWithSummedBias.apply(x, weight, bias, self.stride, self.padding)


def _autocasts() -> bool:
    """Whether autocast is on for the CPU, also before torch 2.4."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


class _ConvWithSummedBias(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx, inputs, output):  # apart from the forward, as torch.func asks
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:2], False]
        dx, d_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, needs
        )
        return dx, d_weight, grad.sum((0, 2, 3)), None, None


class PatchEmbed(nn.Module):
    """Stem or downsampling: one strided convolution, in the second paper with a norm.

    Maps ``[B, in_channels, H, W]`` to about ``[B, embed_dim, H/stride, W/stride]``.

    Args:
        norm_cfg: Config of the norm, after the stem's convolution and before another.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        kernel_size: int,
        stride: int,
        padding: int,
        norm_cfg: dict | None = None,
        norm_first: bool = True,
    ):
        super().__init__()
        self.proj = Conv2d(in_channels, embed_dim, kernel_size, stride, padding)
        self.norm_first = norm_first
        self.norm = None
        if norm_cfg is not None:
            self.norm = build_norm_layer(norm_cfg, in_channels if norm_first else embed_dim)[1]
            trunc_normal_init(self.proj, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return self.proj(x)
        return self.proj(self.norm(x)) if self.norm_first else self.norm(self.proj(x))


class Mlp(nn.Module):
    """Channel MLP of two 1×1 convolutions, ``[B, C, H, W]`` to the same shape."""

    def __init__(
        self, dim: int, hidden_dim: int, act_cfg: dict, drop_rate: float, bias: bool = True
    ):
        super().__init__()
        self.fc1 = Conv2d(dim, hidden_dim, 1, bias=bias)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = Conv2d(hidden_dim, dim, 1, bias=bias)
        self.drop = nn.Dropout(drop_rate)
        for fc in (self.fc1, self.fc2):
            trunc_normal_init(fc, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self._activate(self.fc1(x)))
        return self.drop(self.fc2(x))

    def _activate(self, x: Tensor) -> Tensor:
        # In inference in place, as a second map of this width costs more than GELU.
        in_place = not torch.is_grad_enabled() and type(self.fc1) is Conv2d
        if in_place and is_exact_gelu(self.act) and not is_hooked(self.fc1, self.act):
            return torch.ops.aten.gelu_(x)
        return self.act(x)


@MODELS.register_module()
class StarReLU(nn.Module):
    """``scale * relu(x)² + bias`` with both numbers learned (arXiv 2210.13452, Eq. 6)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


# By ``Arch.act``.
ACTS = {'gelu': dict(type='GELU'), 'star_relu': dict(type='StarReLU')}


def resized(pos_embed: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding ``[1, C, H, W]`` to another height and width."""
    if pos_embed.shape[-2:] == size:
        return pos_embed
    wide = pos_embed.to(torch.promote_types(pos_embed.dtype, torch.float32))
    wide = F.interpolate(wide, size, mode='bicubic', align_corners=False, antialias=True)
    return wide.to(pos_embed.dtype)  # 16 bits cannot be interpolated on the CPU


def scale_parameter(dim: int, init_value: float | None) -> nn.Parameter | None:
    return None if init_value is None else nn.Parameter(torch.full((dim,), float(init_value)))


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale[:, None, None] * x


def is_watched(*modules: nn.Module) -> bool:
    """Whether a hook may keep what a module returns, which then must not be written over."""
    return bool(_global_forward_hooks) or any(module._forward_hooks for module in modules)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether a call of a module does more than its class's forward, so that it must be called."""
    everywhere = (
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )
    return bool(everywhere) or any(
        'forward' in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def is_exact_gelu(act: nn.Module) -> bool:
    return type(act) is nn.GELU and act.approximate == 'none'
