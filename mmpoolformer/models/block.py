"""The block of a MetaFormer, as the papers write it and with fewer passes."""

from __future__ import annotations

import copy

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops import channel_mlp, channel_mlp_covers, pool_mix
from .layers import Conv2d, Mlp, is_exact_gelu, is_hooked, is_watched, scale_parameter, scaled
from .norms import is_foldable, is_over_one_group, one_group_norm
from .token_mixers import Pooling

# What folding takes out of the state dict.
FOLDED = ('layer_scale_2', 'norm2.weight', 'norm2.bias')


class MetaFormerBlock(BaseModule):
    """norm → token mixer → add → norm → channel MLP → add (Eqs. 2 and 3).

    LayerScale (arXiv 2103.17239) and stochastic depth (arXiv 1603.09382) act on
    both branches; in the second paper, ResScale (arXiv 2110.09456) on the shortcuts instead.

    Args:
        dim: Channels.
        token_mixer: Module that maps ``[B, dim, H, W]`` to the same shape.
        mlp_ratio: Hidden width of the channel MLP over ``dim``.
        norm_cfg: Config of both norms.
        act_cfg: Config of the MLP's activation.
        drop_rate: Dropout rate in the MLP.
        drop_path_rate: Probability of dropping a branch for a sample.
        layer_scale_init_value: Initial value of LayerScale; ``None`` for none.
        res_scale_init_value: Initial value of ResScale; ``None`` for none.
        mlp_bias: Whether the convolutions of the channel MLP have biases.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module,
        mlp_ratio: float,
        norm_cfg: dict,
        act_cfg: dict,
        drop_rate: float,
        drop_path_rate: float,
        layer_scale_init_value: float | None,
        res_scale_init_value: float | None = None,
        mlp_bias: bool = True,
    ):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.token_mixer = token_mixer
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop_rate, mlp_bias)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale_1 = scale_parameter(dim, layer_scale_init_value)
        self.layer_scale_2 = scale_parameter(dim, layer_scale_init_value)
        self.res_scale_1 = scale_parameter(dim, res_scale_init_value)
        self.res_scale_2 = scale_parameter(dim, res_scale_init_value)
        self.deployed = False

    def forward(self, x: Tensor, fuse: bool = True) -> Tensor:
        """Map ``[B, dim, H, W]`` to the same shape.

        The same twice, with the token mixer and with the channel MLP::

            x ─┬─ norm ── token mixer ── LayerScale ── DropPath ─(+)─ x
               └───────────────────── ResScale ───────────────────┘

            x ─┬─ norm ── channel MLP ── LayerScale ── DropPath ─(+)─ x
               └───────────────────── ResScale ───────────────────┘

        Args:
            fuse: Compute with :mod:`mmpoolformer.ops` if the block can, else operation by
                operation what the paper writes. The numbers are the same.
        """
        if fuse and self.can_fuse:
            return self._forward_fused(x)
        branch = scaled(self.token_mixer(self.norm1(x)), self.layer_scale_1)
        x = scaled(x, self.res_scale_1) + self.drop_path(branch)
        branch = scaled(self.mlp(self.norm2(x)), self.layer_scale_2)
        return scaled(x, self.res_scale_2) + self.drop_path(branch)

    # The same with fewer passes.

    @property
    def can_fuse(self) -> bool:
        """Whether the mixer, the norm before it and the scales are those of ``pool_mix``."""
        return (
            type(self.token_mixer) is Pooling
            and self.token_mixer.is_plain
            and is_over_one_group(self.norm1)
            and self.layer_scale_1 is not None
            and self.res_scale_1 is self.res_scale_2 is None
            and type(self.drop_path) is DropPath
            and not is_hooked(self.drop_path)
        )

    def _forward_fused(self, x: Tensor) -> Tensor:
        norm1, norm2, mlp = self.norm1, self.norm2, self.mlp
        x, stats = pool_mix(
            x, norm1.weight, norm1.bias, self.layer_scale_1,
            self._draw_sample_scale(x), self.token_mixer.pool_size, norm1.eps,
        )  # fmt: skip
        sample_scale = self._draw_sample_scale(x)
        if self._mlp_is_covered(x):
            return channel_mlp(
                x, stats, norm2.weight, norm2.bias,
                mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias,
                self.layer_scale_2, sample_scale, norm2.eps,
            )  # fmt: skip
        normed = one_group_norm(norm2, x, stats) if is_over_one_group(norm2) else norm2(x)
        return self._add_branch(x, mlp(normed), sample_scale)

    def _add_branch(self, x: Tensor, branch: Tensor, sample_scale: Tensor | None) -> Tensor:
        if self.deployed and sample_scale is None:
            return x + branch
        scale = self.layer_scale_2[:, None, None]
        if sample_scale is not None:
            scale = scale * sample_scale.to(scale.dtype)[:, None, None, None]
        if torch.is_grad_enabled() or branch.dtype != x.dtype or self._mlp_is_watched():
            return torch.addcmul(x, scale, branch)
        return branch.mul_(scale).add_(x)

    def _mlp_is_watched(self) -> bool:
        """Whether something may keep what the MLP returns, which then is not written over."""
        mlp = self.mlp
        is_own = type(mlp) is Mlp and type(mlp.fc2) is Conv2d and type(mlp.drop) is nn.Dropout
        return not is_own or is_watched(mlp, mlp.fc2, mlp.drop)

    def _mlp_is_covered(self, x: Tensor) -> bool:
        mlp = self.mlp
        return (
            type(mlp) is Mlp
            and type(mlp.fc1) is type(mlp.fc2) is Conv2d
            and is_over_one_group(self.norm2)
            and is_exact_gelu(mlp.act)
            and not is_hooked(mlp, mlp.fc1, mlp.act, mlp.fc2, mlp.drop)
            and mlp.fc1.bias is not None
            and not (mlp.drop.training and mlp.drop.p > 0)
            and channel_mlp_covers(x, mlp.fc1.weight, self.layer_scale_2)
        )

    def _draw_sample_scale(self, x: Tensor) -> Tensor | None:
        """Draw stochastic depth's factor per sample ``[B]``; ``None`` where it does nothing."""
        if not self.drop_path.training or self.drop_path.drop_prob == 0:
            return None
        return self.drop_path(x.new_ones(x.shape[0], dtype=torch.float32))

    # Folding.

    def check_foldable(self) -> None:
        """Refuse what would be lost by folding: weights that are computed anew, and hooks.

        Raises:
            RuntimeError: Names the part and the remedy.
        """
        if type(self.mlp).forward is not Mlp.forward or 'forward' in vars(self.mlp):
            raise RuntimeError(
                f'switch_to_deploy cannot fold mlp, a {type(self.mlp).__name__}: it folds into the '
                'convolutions of Mlp alone. Leave the backbone as it is'
            )
        parts = {'mlp.fc1': self.mlp.fc1, 'mlp.fc2': self.mlp.fc2, 'norm2': self.norm2}
        for name, part in parts.items():
            names = ('weight', 'bias') if hasattr(part, 'weight') else ()
            is_wrapped = name != 'norm2' and type(part).forward is not Conv2d.forward
            is_wrapped |= 'forward' in vars(part)
            if is_wrapped or any(key not in part._parameters for key in names):
                raise RuntimeError(
                    f'switch_to_deploy cannot fold {name}, a {type(part).__name__} whose weight is '
                    'no parameter of its own: it is parametrised or wrapped. First call '
                    "torch.nn.utils.parametrize.remove_parametrizations(part, 'weight'), "
                    'or remove_weight_norm, or merge what wraps it'
                )
        for name, part in {'mlp': self.mlp, 'mlp.drop': self.mlp.drop, **parts}.items():
            if part._forward_hooks or part._forward_pre_hooks:
                raise RuntimeError(
                    f'switch_to_deploy cannot fold {name}, which has a hook: it would get other '
                    'maps. Remove the hook first'
                )
        if type(self.mlp.drop) not in (nn.Dropout, nn.Identity):
            raise RuntimeError(
                f'switch_to_deploy cannot fold mlp.drop, a {type(self.mlp.drop).__name__}: a scale '
                'goes past nn.Dropout alone. Leave the backbone as it is'
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load all of the MLP with its norm and scale or raise, ``strict`` or not."""
        given = [key for key in FOLDED if f'{prefix}{key}' in state_dict]
        own = [key for key in FOLDED if key in self.state_dict()]
        beyond = [key for key in given if key not in own]
        if self.deployed and beyond:
            raise RuntimeError(
                f'{prefix}{beyond[0]} is a weight from before switch_to_deploy, which this '
                'backbone has folded already: load the weights into a new one, and fold that'
            )
        if own and not given and f'{prefix}mlp.fc1.weight' in state_dict:
            raise RuntimeError(
                f'these weights have {prefix}mlp.fc1 and no {prefix}{own[0]}: they were folded by '
                'switch_to_deploy. Load them into a backbone that is folded too, or take the '
                'checkpoint of the training'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold LayerScale and the second norm's affine part into the channel MLP.

        Raises:
            RuntimeError: See :meth:`check_foldable`.
        """
        if self.deployed:
            return
        self.check_foldable()
        # Others may have these, too: another block or backbone, and state dicts of before.
        self.mlp, self.norm2 = copy.deepcopy((self.mlp, self.norm2))
        fc1, fc2, norm = self.mlp.fc1, self.mlp.fc2, self.norm2
        if self.layer_scale_2 is not None:
            _scale_outputs(fc2, self.layer_scale_2)
            _make_constant(self, 'layer_scale_2', 1.0)
        # A bias of the norm goes into that of the convolution, which must have one.
        if is_foldable(norm) and (norm.bias is None or fc1.bias is not None):
            _fold_affine(norm, fc1)
        self.deployed = True


def _fold_affine(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Move a norm's weight, and its bias if it has one, into the convolution behind it."""
    if norm.bias is not None:
        bias = conv.weight.double().flatten(1) @ norm.bias.double()
        conv.bias.copy_(conv.bias.double() + bias)
        _make_constant(norm, 'bias', 0.0)
    conv.weight.mul_(norm.weight[:, None, None])
    _make_constant(norm, 'weight', 1.0)


def _scale_outputs(conv: nn.Conv2d, scale: Tensor) -> None:
    conv.weight.mul_(scale[:, None, None, None])
    if conv.bias is not None:
        conv.bias.mul_(scale)


def _make_constant(module: nn.Module, name: str, value: float) -> None:
    """Replace a parameter by a constant that is not part of ``state_dict()``."""
    parameter = getattr(module, name)
    delattr(module, name)
    module.register_buffer(name, torch.full_like(parameter, value), persistent=False)


def drop_path_rates(last: float, layers: tuple[int, ...]) -> list[list[float]]:
    """Rates of stochastic depth by stage and block, in even steps from 0 to that of the last."""
    steps = max(sum(layers) - 1, 1)
    return [
        [last * (sum(layers[:stage]) + block) / steps for block in range(blocks)]
        for stage, blocks in enumerate(layers)
    ]
