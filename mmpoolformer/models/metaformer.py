"""MetaFormer: one frame for all token mixers; PoolFormer, whose mixer is average pooling.

Four stages, each a patch embedding (the stem, later a downsampling) and blocks of two halves,
of which the frame leaves the token mixer open (:mod:`.block`)::

    x = x + mixer(norm(x))
    x = x + mlp(norm(x))

Yu et al., «MetaFormer Is Actually What You Need for Vision», CVPR 2022,
arXiv 2111.11418, and «MetaFormer Baselines for Vision», TPAMI 2024, arXiv 2210.13452.
Parameter names are those of the first paper's official repository (sail-sg/poolformer), so
that its checkpoints load as they are.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import (
    BaseModule,
    ModuleList,
    PretrainedInit,
    Sequential,
    trunc_normal_init,
    update_init_info,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..archs import NUM_STAGES, Arch, resolve_arch
from ..checkpoints.loading import prepare
from .arguments import (
    MIN_SIZE,
    check_arguments,
    check_fork_feat,
    check_layer_scale,
    check_out_indices,
    mixer_cfgs,
)
from .block import MetaFormerBlock, drop_path_rates
from .dispatch import check_token_mixing, enter, leave, plan_forward
from .layers import ACTS, PatchEmbed, resized
from .norms import NormCfgs
from .token_mixers import build_mixer


class MetaFormer(BaseModule):
    """MetaFormer backbone for classification and dense prediction.

    Stage ``i`` (0–3) has stride 4, 8, 16 or 32. Its parts are found by :attr:`stages`; in the
    state dict they have the names of PoolFormer's official repository, where ``network`` has
    the blocks of stage ``i`` as entry ``2 i`` and the downsampling before them as ``2 i - 1``.

    On the CPU, inference is faster in a process that has called
    ``mmpoolformer.utils.memory.reuse_freed_memory()``, as the launchers do.

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
            one of ``arch``, and is all that architectures without LayerScale take.
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
        self.arch = arch = resolve_arch(arch)
        check_arguments(
            in_channels=in_channels,
            pool_size=pool_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            num_classes=num_classes,
            frozen_stages=frozen_stages,
        )
        check_fork_feat(fork_feat, arch)
        check_layer_scale(layer_scale_init_value, arch)
        self.in_channels = in_channels
        self.fork_feat = fork_feat
        self.out_indices = check_out_indices(out_indices) if fork_feat else ()
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        norms = NormCfgs.of(arch)
        if layer_scale_init_value is None:
            layer_scale_init_value = arch.layer_scale_init_value
        mixers = arch.token_mixers if token_mixers is None else token_mixers
        self._build_stages(
            mixer_cfgs(mixers, pool_size, input_size),
            drop_path_rates(drop_path_rate, arch.layers),
            norms.downsample,
            norm_cfg=norm_cfg or norms.block,
            act_cfg=act_cfg or ACTS[arch.act],
            drop_rate=drop_rate,
            layer_scale_init_value=layer_scale_init_value,
        )
        self._build_outputs(norm_cfg or norms.out, num_classes)
        self.token_mixing = token_mixing
        self._freeze_stages()

    def _build_stages(
        self,
        mixers: list[dict],
        drop_path_rates: list[list[float]],
        downsample_norm: dict | None,
        **block_options,
    ) -> None:
        """Build the stem, and the stages up to the last one that is asked for."""
        arch, dims = self.arch, self.arch.embed_dims
        self.patch_embed = PatchEmbed(
            self.in_channels, dims[0], 7, 4, 2, downsample_norm, norm_first=False
        )
        self.network = ModuleList()
        last = max(self.out_indices) if self.fork_feat else NUM_STAGES - 1
        for i in range(last + 1):
            if i > 0:
                self.network.append(PatchEmbed(dims[i - 1], dims[i], 3, 2, 1, downsample_norm))
            side = arch.pos_embeds[i]
            if side is not None:
                pos_embed = nn.Parameter(torch.zeros(1, dims[i], side, side))
                self.register_parameter(f'pos_embed{2 * i}', pos_embed)
            blocks = [
                MetaFormerBlock(
                    dim=dims[i],
                    token_mixer=build_mixer(mixers[i], dims[i]),
                    mlp_ratio=arch.mlp_ratios[i],
                    drop_path_rate=rate,
                    res_scale_init_value=arch.res_scale_init_values[i],
                    mlp_bias=arch.mlp_bias,
                    **block_options,
                )
                for rate in drop_path_rates[i]
            ]
            self.network.append(Sequential(*blocks))

    def _build_outputs(self, norm_cfg: dict, num_classes: int) -> None:
        """Build a norm per output, or the classifier."""
        dims = self.arch.embed_dims
        for i in self.out_indices:
            self.add_module(f'norm{2 * i}', build_norm_layer(norm_cfg, dims[i])[1])
        if not self.fork_feat:
            self.norm = build_norm_layer(norm_cfg, dims[-1])[1]
            self.head = nn.Linear(dims[-1], num_classes)
            trunc_normal_init(self.head, std=0.02)

    # The parts by stage. Their names in the state dict count entries of the official network.

    @property
    def stages(self) -> list[tuple[PatchEmbed, Sequential]]:
        """The stem or downsampling, and the blocks, of every stage that is built."""
        embeds = [self.patch_embed, *self.network[1::2]]
        return list(zip(embeds, self.network[::2]))

    @property
    def blocks(self) -> list[MetaFormerBlock]:
        """All blocks, from the first stage to the last."""
        return [block for _, blocks in self.stages for block in blocks]

    def pos_embed(self, stage: int) -> Tensor | None:
        """The position embedding before a stage's blocks, if it has one."""
        return getattr(self, f'pos_embed{2 * stage}', None)

    def out_norm(self, stage: int) -> nn.Module:
        """The norm of the output of a stage in ``out_indices``."""
        return getattr(self, f'norm{2 * stage}')

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
        plan = plan_forward(self, x)
        x, outs = enter(x, plan), []
        for i, (embed, blocks) in enumerate(self.stages):
            x = self._add_pos_embed(i, embed(x))
            for block in blocks:
                x = self._run_block(block, x, plan.fuse)
            if i in self.out_indices:
                outs.append(leave(x, self.out_norm(i), plan))
        return tuple(outs) if self.fork_feat else self.head(self.norm(x).mean((-2, -1)))

    def _add_pos_embed(self, stage: int, x: Tensor) -> Tensor:
        pos_embed = self.pos_embed(stage)
        return x if pos_embed is None else x + resized(pos_embed, x.shape[-2:])

    def _run_block(self, block: MetaFormerBlock, x: Tensor, fuse: bool) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, x, fuse, use_reentrant=False)
        return block(x, fuse)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f'input of shape {tuple(x.shape)}: {type(self).__name__} takes '
                f'[B, {self.in_channels}, H, W] with H and W at least {MIN_SIZE}. '
                'Add a batch axis, set in_channels, or resize or pad the images'
            )

    @property
    def token_mixing(self) -> str:
        """What computes the blocks that can be fused."""
        return self._token_mixing

    @token_mixing.setter
    def token_mixing(self, value: str) -> None:
        check_token_mixing(value, self.blocks)
        self._token_mixing = value

    def switch_to_deploy(self) -> None:
        """Fold what inference does not need as separate parameters, in place.

        LayerScale and the affine part of each block's second norm go into the
        1×1 convolutions next to them. The folded tensors leave ``state_dict()``, so
        that no later checkpoint loads in part. Repeated calls change nothing.

        Raises:
            RuntimeError: The backbone is in training mode, or a block's parts are parametrised,
                wrapped or hooked. Nothing is folded then.
        """
        if self.training:
            raise RuntimeError(
                'switch_to_deploy folds weights for inference: call backbone.eval() first, '
                'and keep the checkpoint to train on'
            )
        blocks = [block for block in self.blocks if not block.deployed]
        for block in blocks:
            block.check_foldable()
        for block in blocks:
            block.switch_to_deploy()

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
        """Set the training mode, keeping frozen stages in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed]
        for i, (embed, blocks) in enumerate(self.stages[: self.frozen_stages]):
            frozen += [embed, blocks]
            if i in self.out_indices:
                frozen.append(self.out_norm(i))
            if self.pos_embed(i) is not None:
                self.pos_embed(i).requires_grad_(False)
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
