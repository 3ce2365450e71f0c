"""Key names of MetaFormer checkpoints: one small table per source, read in both directions."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ..archs import ARCHS, METAFORMERS, NUM_STAGES, Arch

MAX_BLOCKS = 100  # in a stage; the largest published one has 24


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
MIXER_KEY = re.compile(r'\.token_mixer\.(.+)')


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


OWN_BLOCK = dict(LAYOUTS['official'].backbone, norm='', head='', head1='', head_norm='', head2='')


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


class Weights(NamedTuple):
    """The tensors of a PoolFormer found in a checkpoint.

    Attributes:
        layout: Name in :data:`LAYOUTS`.
        prefix: What stands before the layout's own names (``module.``, ``backbone.``, …).
        tensors: The PoolFormer's tensors.
        others: Keys that belong to something else, such as a detector's heads.
    """

    layout: str
    prefix: str
    tensors: dict[Part, Tensor]
    others: list[str]

    def to(self, layout: str) -> dict[str, Tensor]:
        """The state dict in a layout; parts that it has no name for are left out."""
        if layout == 'official':
            return _with_pos_entries(self.to_own())
        mixers = self.arch.token_mixers
        named = {
            part.key(layout): tensor.flatten(1)
            if part.is_pointwise and _is_linear(layout, part, mixers[part.stage])
            else tensor
            for part, tensor in self.tensors.items()
        }
        named.pop(None, None)
        return named

    def to_own(self) -> dict[str, Tensor]:
        """The state dict of this package's backbones and classifiers."""
        named = {part.key('official'): tensor for part, tensor in self.tensors.items()}
        named.pop(None, None)
        return named

    @property
    def arch(self) -> Arch:
        """Blocks and channels per stage as far as the tensors tell, 0 for stages without any."""
        layers = [0] * NUM_STAGES
        widths = [Counter() for _ in range(NUM_STAGES)]
        for part, tensor in self.tensors.items():
            if part.name in BLOCK_PARTS:
                layers[part.stage] = max(layers[part.stage], part.block + 1)
                if part.name not in ('fc1', 'fc2') and tensor.ndim == 1:
                    widths[part.stage][len(tensor)] += 1
        dims = [width.most_common(1)[0][0] if width else 0 for width in widths]
        mixers = ['pooling'] * NUM_STAGES
        for part in self.tensors:
            if part.name == 'mixer' and mixers[part.stage] not in MIXERS_WITH.values():
                mixers[part.stage] = MIXERS_WITH.get(part.kind, 'another')
        baseline = any(part.name == 'act' for part in self.tensors)
        return Arch(tuple(layers), tuple(dims), token_mixers=tuple(mixers), baseline=baseline)

    @property
    def has_classifier(self) -> bool:
        return any(part.name in ('head', 'head1') for part in self.tensors)

    def is_family(self) -> bool:
        """Whether it is another MetaFormer than PoolFormer."""
        return any(part.name in FAMILY_PARTS for part in self.tensors)

    def missing(self) -> list[str]:
        """Names of the backbone's tensors that should be there for these stages and blocks.

        Of another MetaFormer, the blocks of a stage are asked to be alike.
        """
        wanted = [Part('stem', kind=kind) for kind in ('weight', 'bias')]
        layers_per_stage = self.arch.layers
        built = max([stage for stage, layers in enumerate(layers_per_stage) if layers], default=0)
        for stage, layers in enumerate(layers_per_stage[: built + 1]):
            if stage:
                wanted += [Part('downsample', stage, kind=kind) for kind in ('weight', 'bias')]
            tensors = [(name, kind) for name in BLOCK_PARTS for kind in kinds_of(name)]
            if self.is_family():
                inside = (part for part in self.tensors if part.stage == stage)
                tensors = {(p.name, p.kind) for p in inside if '{block}' in OWN_BLOCK[p.name]}
            for block in range(max(layers, 1)):
                wanted += [Part(name, stage, block, kind) for name, kind in sorted(tensors)]
        return [part.key(self.layout) for part in wanted if part not in self.tensors]

    @property
    def arch_name(self) -> str:
        return arch_name(self.arch)


def arch_name(arch: Arch) -> str:
    """The published name of an architecture's blocks and channels, or a description of them."""
    description = f'dict(layers={tuple(arch.layers)}, embed_dims={tuple(arch.embed_dims)})'
    return next(iter(arch_names(arch)), description)


def arch_names(arch: Arch) -> list[str]:
    """The published architectures whose tensors are those of ``arch``."""

    def tensors_of(arch):
        mixers = tuple(map(_mixer_name, arch.token_mixers))
        return tuple(arch.layers), tuple(arch.embed_dims), mixers, arch.baseline

    known = {**ARCHS, **METAFORMERS}
    return [name for name in known if tensors_of(known[name]) == tensors_of(arch)]


# By which tensors a mixer shows; pooling and identity have none.
MIXERS_WITH = {
    'qkv.weight': 'attention',
    'pwconv1.weight': 'sep_conv',
    'fc.weight': 'spatial_mlp',
    'random_matrix': 'random',
}


def _mixer_name(mixer: str | dict) -> str:
    name = mixer['type'] if isinstance(mixer, dict) else mixer
    return 'pooling' if name == 'identity' else name


def find_weights(state_dict: dict[str, Tensor], prefix: str = '') -> Weights:
    """Recognise the layout of a state dict by its keys, behind any prefix.

    Args:
        state_dict: Names and tensors of a backbone, a classifier, a detector or a segmentor.
        prefix: What the backbone's keys start with; by default, whatever most of them do.

    Raises:
        CheckpointError: No key belongs to a PoolFormer.
    """
    state_dict = _without_pos_entries(state_dict)
    found = map(MIXER_KEY.search, state_dict)
    mixer_kinds = tuple(sorted({match[1] for match in found if match}))
    candidates = {}
    for layout in ('official', 'timm', 'hf', 'baselines'):
        known = _backbone_keys(layout, mixer_kinds)
        candidates[layout] = {key: _split(known, key) for key in state_dict}
    votes = Counter(
        (layout, found[1])
        for layout, keys in candidates.items()
        for found in keys.values()
        if found and found[0].name != 'out_norm' and found[1].startswith(prefix)
    )
    if not votes:
        keys = ', '.join(list(state_dict)[:5]) or 'none'
        behind = f' behind {prefix!r}' if prefix else ''
        raise CheckpointError(
            f'it holds no tensor of a PoolFormer{behind}. Its first keys: {keys}. '
            f'Known layouts: {", ".join(LAYOUTS)}'
        )
    (layout, prefix), most = votes.most_common(1)[0]
    rivals = [other for (_, other), count in votes.items() if other != prefix and 2 * count > most]
    if rivals:
        raise CheckpointError(
            f'it holds several PoolFormers, behind {prefix!r} and {", ".join(map(repr, rivals))}: '
            'say which with prefix='
        )
    parts = {key: found[0] for key, found in candidates[layout].items() if found}
    parts = {key: part for key, part in parts.items() if candidates[layout][key][1] == prefix}
    if layout == 'official' and _is_mmpretrain(state_dict, parts, prefix):
        layout = 'mmpretrain'
        parts = {key: part for key, part in parts.items() if part.name != 'out_norm'}
    root = LAYOUTS[layout].root
    outer = prefix.removesuffix(root)
    for name in LAYOUTS[layout].classifier:
        for kind in ('weight', 'bias'):
            part = Part(name, kind=kind)
            key = part.key(layout)
            # Where the file lacks the root, it does so here too.
            key = prefix + key.removeprefix(root) if key.startswith(root) else outer + key
            parts[key] = part
    tensors = {parts[key]: tensor for key, tensor in state_dict.items() if key in parts}
    if layout != 'official':  # ours has convolutions, and whatever a mixer of one's own has
        tensors = {
            part: tensor[:, :, None, None] if part.is_pointwise and tensor.ndim == 2 else tensor
            for part, tensor in tensors.items()
        }
    others = [key for key in state_dict if key not in parts]
    foreign = [key for key in others if _is_inside(layout, key, prefix)]
    if foreign:
        raise CheckpointError(
            f'it has {len(foreign)} tensors that a PoolFormer does not have '
            f'({", ".join(foreign[:5])}): it is another MetaFormer, or has a norm_cfg or act_cfg '
            'that init_cfg does not take (load_from takes whole models with any)'
        )
    return Weights(layout, outer, tensors, others)


def _is_linear(layout: str, part: Part, mixer: str) -> bool:
    """Whether a layout keeps the kernel of a 1×1 convolution as a matrix."""
    return layout == 'baselines' or (
        layout == 'timm' and part.name != 'mixer' and mixer == 'attention'
    )


def _without_pos_entries(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the official hybrids our names: there, position embeddings count in network."""
    found = [re.fullmatch(r'(.*)network\.(\d+)\.pos_embed', key) for key in state_dict]
    found = [match for match in found if match]
    if not found:
        return state_dict
    prefix, entries = found[0][1], sorted(int(match[2]) for match in found)
    renamed = {}
    for key, tensor in state_dict.items():
        match = re.fullmatch(re.escape(prefix) + r'network\.(\d+)\.(.*)', key)
        if match:
            entry = int(match[1])
            own = entry - sum(other < entry for other in entries)
            key = f'{prefix}network.{own}.{match[2]}'
            if entry in entries:
                key = f'{prefix}pos_embed{own}'
        renamed[key] = tensor
    return renamed


def _with_pos_entries(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give our hybrids the official names, the reverse of :func:`_without_pos_entries`."""
    found = [re.fullmatch(r'pos_embed(\d+)', key) for key in state_dict]
    indices = sorted(int(match[1]) for match in found if match)
    renamed = {}
    for key, tensor in state_dict.items():
        match = re.fullmatch(r'(?:(pos_embed)|network\.)(\d+)(.*)', key)
        if match and indices:
            index, is_pos_embed = int(match[2]), match[1] is not None
            entry = index + sum(other < index + (not is_pos_embed) for other in indices)
            key = f'network.{entry}{".pos_embed" if is_pos_embed else match[3]}'
        renamed[key] = tensor
    return renamed


def _is_mmpretrain(state_dict: dict, parts: dict[str, Part], prefix: str) -> bool:
    """Whether official names are mmpretrain's: by its head, or a lone norm of the last stage."""
    outer = prefix.removesuffix('backbone.')
    if any(f'{outer}head.fc.{kind}' in state_dict for kind in ('weight', 'bias')):
        return True
    if any(part.name in FAMILY_PARTS for part in parts.values()):
        return False  # it has PoolFormer alone
    norms = {part.stage for part in parts.values() if part.name == 'out_norm'}
    return norms == {NUM_STAGES - 1} and len(parts) == len(state_dict)


def _is_inside(layout: str, key: str, prefix: str) -> bool:
    """Whether a key is named like a part of the backbone itself."""
    roots = {template.split('.')[0] for template in LAYOUTS[layout].backbone.values()}
    roots -= {'norm{net}', 'pos_embed{net}'}
    return key.startswith(prefix) and key[len(prefix) :].split('.')[0] in roots


def _split(known: dict[str, Part], key: str) -> tuple[Part, str] | None:
    """Take a backbone's key apart into what it names and the prefix before that."""
    start = 0
    while start >= 0:
        if key[start:] in known:
            return known[key[start:]], key[:start]
        start = key.find('.', start) + 1 or -1
    return None


@lru_cache(maxsize=32)
def _backbone_keys(layout: str, mixer_kinds: tuple[str, ...]) -> dict[str, Part]:
    """Every name that a layout has for a backbone's part, without the root."""
    parts = []
    for name, template in LAYOUTS[layout].backbone.items():
        kinds = mixer_kinds if name == 'mixer' else kinds_of(name)
        first = 1 if name.startswith('downsample') else 0
        for stage in range(first, 1 if name.startswith('stem') else NUM_STAGES):
            for block in range(MAX_BLOCKS if '{block}' in template else 1):
                parts += [Part(name, stage, block, kind) for kind in kinds]
    root = LAYOUTS[layout].root
    return {part.key(layout).removeprefix(root): part for part in parts}
