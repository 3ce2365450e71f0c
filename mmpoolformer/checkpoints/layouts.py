"""Key names of MetaFormer checkpoints: one small table per source, read in both directions."""

from __future__ import annotations

from typing import NamedTuple


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit; nothing was loaded."""


class Layout(NamedTuple):
    """How one source names the tensors of a PoolFormer.

    ``{stage}`` counts from 0, ``{net}`` is its entry of the official ``network`` (twice the
    stage) and ``{down}`` the entry of the downsampling before it.

    Attributes:
        root: What stands before the backbone's names where a classifier is saved.
        backbone: Names of the backbone's parts, without ``root``.
        classifier: Full names of the classification norm and head.
    """

    root: str
    backbone: dict[str, str]
    classifier: dict[str, str]


OFFICIAL_BACKBONE = dict(
    stem='patch_embed.proj',
    downsample='network.{down}.proj',
    norm1='network.{net}.{block}.norm1',
    norm2='network.{net}.{block}.norm2',
    layer_scale_1='network.{net}.{block}.layer_scale_1',
    layer_scale_2='network.{net}.{block}.layer_scale_2',
    fc1='network.{net}.{block}.mlp.fc1',
    fc2='network.{net}.{block}.mlp.fc2',
)
# What the second paper's architectures and the hybrids have besides, under our names.
OWN_BACKBONE = dict(
    OFFICIAL_BACKBONE,
    stem_norm='patch_embed.norm',
    downsample_norm='network.{down}.norm',
    act='network.{net}.{block}.mlp.act',
    res_scale_1='network.{net}.{block}.res_scale_1',
    res_scale_2='network.{net}.{block}.res_scale_2',
    pos_embed='pos_embed{net}',
    mixer='network.{net}.{block}.token_mixer',
)

# Parts that every block has, and those that only other architectures than PoolFormer have.
BLOCK_PARTS = ('norm1', 'norm2', 'layer_scale_1', 'layer_scale_2', 'fc1', 'fc2')
FAMILY_PARTS = tuple(name for name in OWN_BACKBONE if name not in OFFICIAL_BACKBONE)
KINDS = {
    **dict.fromkeys(('layer_scale_1', 'layer_scale_2', 'res_scale_1', 'res_scale_2'), ('',)),
    'pos_embed': ('',),
    'act': ('scale', 'bias'),
}
# By which tensors a mixer shows; pooling and identity have none.
MIXERS_WITH = {
    'qkv.weight': 'attention',
    'pwconv1.weight': 'sep_conv',
    'fc.weight': 'spatial_mlp',
    'random_matrix': 'random',
}


def kinds_of(name: str) -> tuple[str, ...]:
    """The tensors that a part may have: weight and bias, or as listed."""
    return KINDS.get(name, ('weight', 'bias'))


LAYOUTS = {
    # sail-sg/poolformer, and this package: ImageNet files, and mmdet's and mmseg's whole models.
    'official': Layout(
        root='',
        backbone=dict(OWN_BACKBONE, out_norm='norm{net}'),
        classifier=dict(norm='norm', head='head'),
    ),
    # Its only output norm is the classification norm, under the name of the last stage's.
    'mmpretrain': Layout(
        root='backbone.',
        backbone=OFFICIAL_BACKBONE,
        classifier=dict(norm='backbone.norm6', head='head.fc'),
    ),
    'timm': Layout(
        root='',
        backbone=dict(
            stem='stem.conv',
            downsample='stages.{stage}.downsample.conv',
            norm1='stages.{stage}.blocks.{block}.norm1',
            norm2='stages.{stage}.blocks.{block}.norm2',
            layer_scale_1='stages.{stage}.blocks.{block}.layer_scale1.scale',
            layer_scale_2='stages.{stage}.blocks.{block}.layer_scale2.scale',
            fc1='stages.{stage}.blocks.{block}.mlp.fc1',
            fc2='stages.{stage}.blocks.{block}.mlp.fc2',
            stem_norm='stem.norm',
            downsample_norm='stages.{stage}.downsample.norm',
            act='stages.{stage}.blocks.{block}.mlp.act',
            res_scale_1='stages.{stage}.blocks.{block}.res_scale1.scale',
            res_scale_2='stages.{stage}.blocks.{block}.res_scale2.scale',
            mixer='stages.{stage}.blocks.{block}.token_mixer',
        ),
        classifier=dict(
            norm='head.norm',
            head='head.fc',
            head1='head.fc.fc1',
            head_norm='head.fc.norm',
            head2='head.fc.fc2',
        ),
    ),
    # sail-sg/metaformer: the second paper's architectures.
    'baselines': Layout(
        root='',
        backbone=dict(
            stem='downsample_layers.0.conv',
            stem_norm='downsample_layers.0.post_norm',
            downsample='downsample_layers.{stage}.conv',
            downsample_norm='downsample_layers.{stage}.pre_norm',
            norm1='stages.{stage}.{block}.norm1',
            norm2='stages.{stage}.{block}.norm2',
            res_scale_1='stages.{stage}.{block}.res_scale1.scale',
            res_scale_2='stages.{stage}.{block}.res_scale2.scale',
            fc1='stages.{stage}.{block}.mlp.fc1',
            fc2='stages.{stage}.{block}.mlp.fc2',
            act='stages.{stage}.{block}.mlp.act',
            mixer='stages.{stage}.{block}.token_mixer',
        ),
        classifier=dict(
            norm='norm', head='head', head1='head.fc1', head_norm='head.norm', head2='head.fc2'
        ),
    ),
    'hf': Layout(
        root='poolformer.',
        backbone=dict(
            stem='encoder.patch_embeddings.0.projection',
            downsample='encoder.patch_embeddings.{stage}.projection',
            norm1='encoder.block.{stage}.{block}.before_norm',
            norm2='encoder.block.{stage}.{block}.after_norm',
            layer_scale_1='encoder.block.{stage}.{block}.layer_scale_1',
            layer_scale_2='encoder.block.{stage}.{block}.layer_scale_2',
            fc1='encoder.block.{stage}.{block}.output.conv1',
            fc2='encoder.block.{stage}.{block}.output.conv2',
        ),
        classifier=dict(norm='norm', head='classifier'),
    ),
}


class Part(NamedTuple):
    """What a tensor is, whatever its source calls it."""

    name: str
    stage: int = 0
    block: int = 0
    kind: str = ''  # 'weight', 'bias', nothing for a tensor on its own; all of it for a mixer's

    @property
    def is_pointwise(self) -> bool:
        """Whether it is the kernel of a 1×1 convolution, which some sources have as a matrix."""
        if self.name == 'mixer':
            return self.kind in ('pwconv1.weight', 'pwconv2.weight')
        return self.name in ('fc1', 'fc2') and self.kind == 'weight'

    def key(self, layout: str) -> str | None:
        """The full name in a layout, or None where the layout has no such part."""
        root, backbone, classifier = LAYOUTS[layout]
        if self.name in classifier:
            name = classifier[self.name]
        elif self.name in backbone:
            net = 2 * self.stage
            numbers = dict(stage=self.stage, block=self.block, net=net, down=net - 1)
            name = root + backbone[self.name].format(**numbers)
        else:
            return None
        return f'{name}.{self.kind}' if self.kind else name
