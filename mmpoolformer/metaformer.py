"""MetaFormer: one frame for all token mixers; PoolFormer, whose mixer is average pooling.

Yu et al., «MetaFormer Is Actually What You Need for Vision», CVPR 2022,
arXiv 2111.11418, and «MetaFormer Baselines for Vision», TPAMI 2024, arXiv 2210.13452.
Parameter names are those of the first paper's official repository (sail-sg/poolformer), so
that its checkpoints load as they are.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import (
    BaseModule,
    ModuleList,
    PretrainedInit,
    Sequential,
    trunc_normal_init,
    update_init_info,
)
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .archs import NUM_STAGES, Arch, is_integer, is_number, resolve_arch
from .checkpoints.loading import prepare
from .memory import reuse_freed_memory
from .ops import channel_mlp, channel_mlp_covers, group_norm, pool_mix
from .token_mixers import TOKEN_MIXERS, FixedSizeMixer, Pooling, StarReLU, one_per_stage

# The stem divides both sides by 4 and each of the three later stages by 2.
MIN_SIZE = 32


# Types in which oneDNN computes convolutions.
MKLDNN_TYPES = (torch.float32, torch.bfloat16, torch.float16)

# How blocks compute their two halves: as the paper writes them, or the same with fewer passes,
# or what is faster of both.
TOKEN_MIXING = ('auto', 'fused', 'plain')
# Pixels of a batch of images from which fewer passes pay in inference on the CPU, about one of
# 200×200: below, the maps stay in its caches.
FUSED_PIXELS = 40_000

# In public from torch 2.3 on.
is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)


MODELS.register_module(module=StarReLU)


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
            return group_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


# Norms of blocks, outputs, and of stem and downsampling, by ``arch.norm`` and ``arch.baseline``.
GROUP, CHANNEL = dict(type='OneGroupNorm'), dict(type='ChannelLayerNorm')
NORMS = {
    ('group', False): (GROUP, GROUP),
    ('channel', False): (CHANNEL, CHANNEL),
    ('group', True): (dict(GROUP, bias=False, eps=1e-6), GROUP),
    ('channel', True): (dict(CHANNEL, bias=False, eps=1e-6), dict(CHANNEL, eps=1e-6)),
}
DOWNSAMPLING_NORM = dict(CHANNEL, bias=False, eps=1e-6)


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
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size, stride, padding)
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
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1, bias=bias)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1, bias=bias)
        self.drop = nn.Dropout(drop_rate)
        for fc in (self.fc1, self.fc2):
            trunc_normal_init(fc, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self._activate(self.fc1(x)))
        return self.drop(self.fc2(x))

    def _activate(self, x: Tensor) -> Tensor:
        # In inference in place, as a second map of this width costs more than GELU, unless a hook
        # may have kept the first one.
        in_place = not torch.is_grad_enabled() and not self.fc1._forward_hooks
        if in_place and _is_exact_gelu(self.act):
            return torch.ops.aten.gelu_(x)
        return self.act(x)


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
        self.layer_scale_1 = _scale_parameter(dim, layer_scale_init_value)
        self.layer_scale_2 = _scale_parameter(dim, layer_scale_init_value)
        self.res_scale_1 = _scale_parameter(dim, res_scale_init_value)
        self.res_scale_2 = _scale_parameter(dim, res_scale_init_value)
        self.deployed = False

    @property
    def can_fuse(self) -> bool:
        """Whether the mixer, the norm before it and the scales are those of ``pool_mix``."""
        return (
            type(self.token_mixer) is Pooling
            and _is_one_group_norm(self.norm1)
            and self.layer_scale_1 is not None
            and self.res_scale_1 is None
        )

    def forward(self, x: Tensor, fuse: bool = True) -> Tensor:
        """Map ``[B, dim, H, W]`` to the same shape.

        Args:
            fuse: Compute with :mod:`mmpoolformer.ops` if the block can, else operation by
                operation what the paper writes. The numbers are the same.
        """
        if fuse and self.can_fuse:
            return self._forward_fused(x)
        branch = _scale(self.token_mixer(self.norm1(x)), self.layer_scale_1)
        x = _scale(x, self.res_scale_1) + self.drop_path(branch)
        branch = _scale(self.mlp(self.norm2(x)), self.layer_scale_2)
        return _scale(x, self.res_scale_2) + self.drop_path(branch)

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
        branch = mlp(group_norm(x, norm2.weight, norm2.bias, norm2.eps))
        if self.deployed and sample_scale is None:
            return x + branch
        scale = self.layer_scale_2[:, None, None]
        if sample_scale is not None:
            scale = scale * sample_scale[:, None, None, None]
        if torch.is_grad_enabled() or branch.dtype != x.dtype:
            return torch.addcmul(x, scale, branch)
        return branch.mul_(scale).add_(x)

    def _mlp_is_covered(self, x: Tensor) -> bool:
        mlp = self.mlp
        return (
            _is_one_group_norm(self.norm2)
            and _is_exact_gelu(mlp.act)
            and not (self.training and mlp.drop.p > 0)
            and channel_mlp_covers(x, mlp.fc1.out_channels)
        )

    def _draw_sample_scale(self, x: Tensor) -> Tensor | None:
        """Draw stochastic depth's factor per sample ``[B]``; ``None`` where it does nothing."""
        if not self.training or self.drop_path.drop_prob == 0:
            return None
        return self.drop_path(x.new_ones(x.shape[0], dtype=torch.float32))

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold LayerScale and the second norm's affine part into the channel MLP."""
        if self.deployed:
            return
        fc1, fc2, norm = self.mlp.fc1, self.mlp.fc2, self.norm2
        if self.layer_scale_2 is not None:
            _scale_outputs(fc2, self.layer_scale_2)
            _make_constant(self, 'layer_scale_2', 1.0)
        foldable = isinstance(norm, (nn.GroupNorm, ChannelLayerNorm)) and norm.weight is not None
        if foldable and (norm.bias is None or fc1.bias is not None):
            if norm.bias is not None:
                bias = fc1.weight.double().flatten(1) @ norm.bias.double()
                fc1.bias.copy_(fc1.bias.double() + bias)
                _make_constant(norm, 'bias', 0.0)
            fc1.weight.mul_(norm.weight[:, None, None])
            _make_constant(norm, 'weight', 1.0)
        self.deployed = True


class MetaFormer(BaseModule):
    """MetaFormer backbone for classification and dense prediction.

    Stage ``i`` (0–3) has stride 4, 8, 16 or 32. In ``network``, stage ``i`` is
    entry ``2 i`` and the downsampling before it entry ``2 i - 1``, as in the
    official repository of PoolFormer.

    Args:
        arch: A name in ``mmpoolformer.METAFORMERS`` such as ``'caformer_s18'``, a name of
            PoolFormer's (``'s12'``, …), or a dict of the fields of ``mmpoolformer.Arch``,
            ``layers`` and ``embed_dims`` among them.
        token_mixers: Name in ``TOKEN_MIXERS`` or config with ``type``, for all stages or one per
            stage: ``'identity'``, ``'pooling'``, ``'attention'``, ``'sep_conv'``,
            ``'spatial_mlp'``, ``'random'``, or one of your own. ``None`` takes those of ``arch``.
        in_channels: Channels of the input image.
        pool_size: Window of the pooling token mixer, an odd number.
        input_size: Side, or height and width, of the images, for the mixers that are tied to
            one size (``'spatial_mlp'``, ``'random'``).
        norm_cfg: Norm of the blocks and of the outputs. ``None`` takes the one of ``arch``,
            for PoolFormer GroupNorm with one group.
        act_cfg: Activation of the channel MLP. ``None`` takes the one of ``arch``, for
            PoolFormer the exact GELU.
        drop_rate: Dropout rate in the channel MLP.
        drop_path_rate: Stochastic depth of the last block; it grows linearly
            from 0 over all blocks.
        layer_scale_init_value: Initial value of LayerScale. ``None`` takes the
            one of ``arch``. Architectures of the second paper have no LayerScale.
        fork_feat: Return a normalised map per stage in ``out_indices`` instead
            of class logits. Architectures of the second paper have no classifier here.
        out_indices: Stages to return with ``fork_feat``. Only these own an
            output norm, and the stages above the last of them are not built.
        num_classes: Classes of the head with ``fork_feat=False``.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and
            the first ``k`` stages with their output norms.
        with_cp: Recompute each block in the backward pass to save memory.
        token_mixing: ``'fused'`` computes the blocks whose norm and mixer allow it with
            :mod:`mmpoolformer.ops`, which give the numbers of the plain definition faster;
            ``'plain'`` computes the definition. ``'auto'`` is ``'fused'`` but for small images
            in inference on the CPU, where the definition is faster. The attribute may be set.
        init_cfg: Initialisation config of mmengine. ``dict(type='Pretrained', checkpoint=…)``
            takes the sources and layouts of :func:`~mmpoolformer.checkpoints.load_pretrained`.

    Raises:
        ValueError: An argument, or later an input, outside of what is described
            here.
    """

    def __init__(
        self,
        arch: str | dict | Arch = 'poolformer_s12',
        token_mixers: str | dict | list | None = None,
        in_channels: int = 3,
        pool_size: int = 3,
        input_size: int | tuple[int, int] = 224,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        fork_feat: bool = True,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        num_classes: int = 1000,
        frozen_stages: int = -1,
        with_cp: bool = False,
        token_mixing: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch)
        _check(in_channels, 'in_channels', _is_int(in_channels, 1), 'a positive integer')
        _check(
            pool_size, 'pool_size', _is_int(pool_size, 1) and pool_size % 2 == 1, 'an odd integer'
        )
        _check(drop_rate, 'drop_rate', _is_rate(drop_rate), 'a rate in [0, 1)')
        _check(drop_path_rate, 'drop_path_rate', _is_rate(drop_path_rate), 'a rate in [0, 1)')
        _check(
            layer_scale_init_value,
            'layer_scale_init_value',
            layer_scale_init_value is None or is_number(layer_scale_init_value),
            "a number, or None for the arch's own",
        )
        _check(num_classes, 'num_classes', _is_int(num_classes, 1), 'a positive integer')
        _check(
            frozen_stages,
            'frozen_stages',
            _is_int(frozen_stages, -1) and frozen_stages <= NUM_STAGES,
            f'an integer from -1 (nothing frozen) to {NUM_STAGES} (all stages frozen)',
        )
        self.in_channels = in_channels
        self.fork_feat = fork_feat
        self.out_indices = _check_out_indices(out_indices) if fork_feat else ()
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        layers, embed_dims, mlp_ratios = self.arch[:3]
        baseline = self.arch.baseline
        _check(
            fork_feat,
            'fork_feat',
            fork_feat or not baseline,
            'True: the architectures of arXiv 2210.13452 have no classifier here',
        )
        if layer_scale_init_value is None:
            layer_scale_init_value = self.arch.layer_scale_init_value
        default_norm, default_out_norm = NORMS[self.arch.norm, baseline]
        out_norm_cfg = norm_cfg or default_out_norm
        norm_cfg = norm_cfg or default_norm
        act_cfg = act_cfg or dict(type='StarReLU' if baseline else 'GELU')
        downsampling_norm = DOWNSAMPLING_NORM if baseline else None
        if token_mixers is None:
            token_mixers = self.arch.token_mixers
        mixers = _mixer_cfgs(token_mixers, pool_size, input_size)
        num_blocks = sum(layers)

        self.patch_embed = PatchEmbed(
            in_channels, embed_dims[0], 7, 4, 2, downsampling_norm, norm_first=False
        )
        self.network = ModuleList()
        last_stage = max(self.out_indices) if fork_feat else NUM_STAGES - 1
        for i in range(last_stage + 1):
            if i > 0:
                self.network.append(
                    PatchEmbed(embed_dims[i - 1], embed_dims[i], 3, 2, 1, downsampling_norm)
                )
            if self.arch.pos_embeds[i] is not None:
                side = self.arch.pos_embeds[i]
                pos_embed = nn.Parameter(torch.zeros(1, embed_dims[i], side, side))
                self.register_parameter(f'pos_embed{2 * i}', pos_embed)
            blocks = [
                MetaFormerBlock(
                    dim=embed_dims[i],
                    token_mixer=_build_mixer(mixers[i], embed_dims[i]),
                    mlp_ratio=mlp_ratios[i],
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg,
                    drop_rate=drop_rate,
                    drop_path_rate=drop_path_rate * (sum(layers[:i]) + j) / max(num_blocks - 1, 1),
                    layer_scale_init_value=None if baseline else layer_scale_init_value,
                    res_scale_init_value=1.0 if baseline and i >= 2 else None,
                    mlp_bias=not baseline,
                )
                for j in range(layers[i])
            ]
            self.network.append(Sequential(*blocks))

        if fork_feat:
            for i in self.out_indices:
                self.add_module(f'norm{2 * i}', build_norm_layer(out_norm_cfg, embed_dims[i])[1])
        else:
            self.norm = build_norm_layer(out_norm_cfg, embed_dims[-1])[1]
            self.head = nn.Linear(embed_dims[-1], num_classes)
            trunc_normal_init(self.head, std=0.02)
        self.token_mixing = token_mixing
        self._freeze_stages()

    @property
    def blocks(self) -> list[MetaFormerBlock]:
        """All blocks, from the first stage to the last."""
        return [block for stage in self.network[::2] for block in stage]

    @property
    def token_mixing(self) -> str:
        """What computes the blocks that can be fused."""
        return self._token_mixing

    @token_mixing.setter
    def token_mixing(self, value: str) -> None:
        _check(value, 'token_mixing', value in TOKEN_MIXING, f'one of {TOKEN_MIXING}')
        if value == 'fused' and not any(block.can_fuse for block in self.blocks):
            first = self.blocks[0]
            raise ValueError(
                "token_mixing='fused' needs a block with pooling, LayerScale and "
                "norm_cfg=dict(type='GN', num_groups=1) with its affine part, not "
                f'{type(first.token_mixer).__name__} and {type(first.norm1).__name__}: take '
                "token_mixing='plain', or leave it out"
            )
        self._token_mixing = value

    def switch_to_deploy(self) -> None:
        """Fold what inference does not need as separate parameters, in place.

        LayerScale and the affine part of each block's second norm go into the
        1×1 convolutions next to them. The folded tensors leave ``state_dict()``, so
        that no later checkpoint loads in part. Repeated calls change nothing.

        Raises:
            RuntimeError: The backbone is in training mode.
        """
        if self.training:
            raise RuntimeError(
                'switch_to_deploy folds weights for inference: call backbone.eval() first, '
                'and keep the checkpoint to train on'
            )
        for block in self.blocks:
            block.switch_to_deploy()

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Compute stage features, or logits with ``fork_feat=False``.

        Args:
            x: Images ``[B, in_channels, H, W]``, ``H`` and ``W`` at least 32.

        Returns:
            A map ``[B, embed_dims[i], ≈H/2^(i+2), ≈W/2^(i+2)]`` per stage ``i`` in
            ``out_indices``, or logits ``[B, num_classes]``.

        Raises:
            ValueError: ``x`` has another number of axes or channels, or is too
                small.
        """
        self._check_input(x)
        keeps_layout = self._has_channels_last_caller(x)
        fuse = self._fuses(x, keeps_layout)
        all_fused = fuse and all(block.can_fuse for block in self.blocks)
        if self._channels_last_pays(x, all_fused):
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(x)
        outs = []
        for index, module in enumerate(self.network):
            if index % 2:  # downsampling
                x = module(x)
                continue
            x = self._add_pos_embed(index, x)
            for block in module:
                x = self._run_block(block, x, fuse)
            if index // 2 in self.out_indices:
                out = self._norm_output(getattr(self, f'norm{index}'), x, all_fused)
                outs.append(out if keeps_layout else out.contiguous())
        if self.fork_feat:
            return tuple(outs)
        return self.head(self.norm(x).mean((-2, -1)))

    def _add_pos_embed(self, index: int, x: Tensor) -> Tensor:
        pos_embed = getattr(self, f'pos_embed{index}', None)
        if pos_embed is None:
            return x
        if pos_embed.shape[-2:] != x.shape[-2:]:
            wide = pos_embed.to(torch.promote_types(pos_embed.dtype, torch.float32))
            wide = F.interpolate(
                wide, x.shape[-2:], mode='bicubic', align_corners=False, antialias=True
            )
            pos_embed = wide.to(pos_embed.dtype)  # 16 bits cannot be interpolated on the CPU
        return x + pos_embed

    def _norm_output(self, norm: nn.Module, x: Tensor, all_fused: bool) -> Tensor:
        if all_fused and _is_one_group_norm(norm):
            return group_norm(x, norm.weight, norm.bias, norm.eps)
        return norm(x)

    def _run_block(self, block: nn.Module, x: Tensor, fuse: bool) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, x, fuse, use_reentrant=False)
        return block(x, fuse)

    def _fuses(self, x: Tensor, has_channels_last_caller: bool) -> bool:
        """Whether the blocks that can be fused are, for these images."""
        if self.token_mixing != 'auto':
            return self.token_mixing == 'fused'
        if x.device.type != 'cpu' or torch.is_grad_enabled():
            return True
        # One compiled graph for all sizes (from torch 2.4 on).
        if is_compiling() or has_channels_last_caller or not x.is_contiguous():
            return True
        return x.shape[0] * x.shape[2] * x.shape[3] >= FUSED_PIXELS

    def _channels_last_pays(self, x: Tensor, all_fused: bool) -> bool:
        """Whether the blocks run faster with channels in the last axis of memory."""
        # PyTorch's GroupNorm copies there on CUDA; the fused path has its own.
        fits = all_fused or isinstance(self.blocks[0].norm1, ChannelLayerNorm)
        return fits and (x.is_cuda or (x.device.type == 'cpu' and x.dtype in MKLDNN_TYPES))

    def _has_channels_last_caller(self, x: Tensor) -> bool:
        """Whether a convolution of ``x`` would return channels-last maps by itself."""
        return any(
            tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
            for tensor in (x, self.patch_embed.proj.weight)
        )

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f'input of shape {tuple(x.shape)}: {type(self).__name__} takes '
                f'[B, {self.in_channels}, H, W] with H and W at least {MIN_SIZE}. '
                'Add a batch axis, set in_channels, or resize or pad the images'
            )

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; pretrained weights fit completely or raise.

        Raises:
            CheckpointError: See :func:`~mmpoolformer.checkpoints.load_pretrained`.
        """
        if self.is_init:
            return
        own_cfg = self.init_cfg
        cfgs = [own_cfg] if isinstance(own_cfg, dict) else own_cfg or []
        pretrained = [cfg for cfg in cfgs if cfg['type'] in ('Pretrained', PretrainedInit)]
        # Every check before anything changes.
        prepared = [
            prepare(
                self,
                cfg['checkpoint'],
                prefix=cfg.get('prefix') or '',
                allow_pickle=cfg.get('allow_pickle', False),
            )
            for cfg in pretrained
        ]
        try:
            self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained]
            super().init_weights()
        finally:
            self.init_cfg = own_cfg
        for weights in prepared:
            report = weights.load(self)
            if hasattr(self, '_params_init_info'):  # mmengine's log of a whole model
                update_init_info(self, init_info=f'pretrained weights from {report}')

    def train(self, mode: bool = True) -> MetaFormer:
        """Set the training mode, keeping frozen stages in evaluation mode.

        Evaluation mode also has :func:`~mmpoolformer.memory.reuse_freed_memory`.
        """
        super().train(mode)
        self._freeze_stages()
        if not mode:
            reuse_freed_memory()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed]
        for i in range(min(self.frozen_stages, len(self.network) // 2 + 1)):
            frozen.extend(self.network[max(2 * i - 1, 0) : 2 * i + 1])
            if i in self.out_indices:
                frozen.append(getattr(self, f'norm{2 * i}'))
            pos_embed = getattr(self, f'pos_embed{2 * i}', None)
            if pos_embed is not None:
                pos_embed.requires_grad_(False)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


class PoolFormer(MetaFormer):
    """PoolFormer backbone (arXiv 2111.11418): MetaFormer with pooling in all stages.

    Args:
        arch: ``'s12'``, ``'s24'``, ``'s36'``, ``'m36'``, ``'m48'``, or a dict with
            ``layers``, ``embed_dims``, ``mlp_ratios`` and ``layer_scale_init_value``.
        kwargs: All others of :class:`MetaFormer` but ``token_mixers``.

    Raises:
        ValueError: See :class:`MetaFormer`; or the architecture mixes by something else.
        TypeError: Unknown argument.
    """

    def __init__(self, arch: str | dict | Arch = 's12', **kwargs):
        if 'token_mixers' in kwargs:
            raise ValueError(
                "PoolFormer has no token_mixers, it mixes by pooling: take type='MetaFormer'"
            )
        if any(mixer != 'pooling' for mixer in resolve_arch(arch).token_mixers):
            raise ValueError(
                f'PoolFormer mixes by pooling, arch={arch!r} by something else: '
                "take type='MetaFormer'"
            )
        super().__init__(arch, **kwargs)


def _mixer_cfgs(mixers, pool_size: int, input_size) -> list[dict]:
    """The config of each stage's token mixer, complete but for the channels."""
    sides = (input_size, input_size) if is_integer(input_size) else input_size
    valid = isinstance(sides, (list, tuple)) and len(sides) == 2
    _check(
        input_size,
        'input_size',
        valid and all(_is_int(side, MIN_SIZE) for side in sides),
        f'a side, or height and width, of at least {MIN_SIZE}',
    )
    cfgs = []
    for stage, mixer in enumerate(one_per_stage(mixers)):
        cfg = dict(mixer) if isinstance(mixer, dict) else dict(type=mixer)
        mixer_class = cfg.get('type')
        if isinstance(mixer_class, str):
            mixer_class = TOKEN_MIXERS.module_dict.get(mixer_class)
        _check(
            mixer,
            'token_mixers',
            callable(mixer_class),
            f'one of {sorted(TOKEN_MIXERS.module_dict)}, or register yours with TOKEN_MIXERS and '
            'custom_imports',
        )
        if mixer_class is Pooling:
            cfg.setdefault('pool_size', pool_size)
        if isinstance(mixer_class, type) and issubclass(mixer_class, FixedSizeMixer):
            cfg.setdefault('size', tuple(_map_side(side, stage) for side in sides))
        cfgs.append(dict(cfg, type=mixer_class))
    return cfgs


def _build_mixer(cfg: dict, dim: int) -> nn.Module:
    """Not by ``TOKEN_MIXERS.build``, which warns of every toolbox that has no such registry."""
    options = dict(cfg)
    return options.pop('type')(dim=dim, **options)


def _map_side(side: int, stage: int) -> int:
    """Positions along a side of the image after the convolutions up to a stage."""
    side = (side + 2 * 2 - 7) // 4 + 1
    for _ in range(stage):
        side = (side + 2 * 1 - 3) // 2 + 1
    return side


def _scale_parameter(dim: int, init_value: float | None) -> nn.Parameter | None:
    return None if init_value is None else nn.Parameter(torch.full((dim,), float(init_value)))


def _scale(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale[:, None, None] * x


def _is_one_group_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.GroupNorm) and norm.num_groups == 1 and norm.bias is not None


def _is_exact_gelu(act: nn.Module) -> bool:
    return type(act) is nn.GELU and act.approximate == 'none'


def _scale_outputs(conv: nn.Conv2d, scale: Tensor) -> None:
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias.mul_(scale)


def _make_constant(module: nn.Module, name: str, value: float) -> None:
    """Replace a parameter by a constant that is not part of ``state_dict()``."""
    parameter = getattr(module, name)
    delattr(module, name)
    module.register_buffer(name, torch.full_like(parameter, value), persistent=False)


def _is_int(value, minimum: int) -> bool:
    return is_integer(value) and value >= minimum


def _is_rate(value) -> bool:
    return is_number(value) and 0 <= value < 1


def _check(value, name: str, valid: bool, allowed: str) -> None:
    if not valid:
        raise ValueError(f'{name}={value!r}: give {allowed}')


def _check_out_indices(out_indices) -> tuple[int, ...]:
    valid = (
        isinstance(out_indices, (list, tuple))
        and len(out_indices) > 0
        and all(_is_int(i, 0) and i < NUM_STAGES for i in out_indices)
        and list(out_indices) == sorted(set(out_indices))
    )
    _check(
        out_indices,
        'out_indices',
        valid,
        f'increasing stage numbers from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3) or (1, 2, 3)',
    )
    return tuple(out_indices)
