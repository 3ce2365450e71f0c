"""Recognise the layout of a checkpoint by its keys, and what architecture it has."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ..archs import ARCHS, METAFORMERS, NUM_STAGES, Arch
from .layouts import (
    BLOCK_PARTS,
    FAMILY_PARTS,
    LAYOUTS,
    MIXERS_WITH,
    OWN_BACKBONE,
    CheckpointError,
    Part,
    kinds_of,
)

# Layouts whose keys tell them; mmpretrain's backbone has the official names.
READ_AS = ('official', 'timm', 'hf', 'baselines')
MAX_BLOCKS = 100  # in a stage; the largest published one has 24
MAX_KINDS = 100  # of tensors in token mixers
MIXER_KEY = re.compile(r'\.token_mixer\.(.+)')
IN_BLOCKS = {name for name, template in OWN_BACKBONE.items() if '{block}' in template}


def find_weights(state_dict: dict[str, Tensor], prefix: str = '') -> Weights:
    """Recognise the layout of a state dict by its keys, behind any prefix.

    Args:
        state_dict: Names and tensors of a backbone, a classifier, a detector or a segmentor.
        prefix: What the backbone's keys start with; by default, whatever most of them do.

    Raises:
        CheckpointError: No key belongs to a PoolFormer.
    """
    state_dict = _without_pos_entries(state_dict)
    found = _read_keys(state_dict)
    layout, prefix = _elect(found, prefix)
    parts = {key: pair[0] for key, pair in found[layout].items() if pair and pair[1] == prefix}
    if layout == 'official' and _is_mmpretrain(state_dict, parts, prefix):
        layout = 'mmpretrain'
        parts = {key: part for key, part in parts.items() if part.name != 'out_norm'}
    parts.update(_classifier_keys(layout, prefix))
    tensors = {parts[key]: tensor for key, tensor in state_dict.items() if key in parts}
    if layout != 'official':  # ours has convolutions, and whatever a mixer of one's own has
        tensors = {
            part: tensor[:, :, None, None] if part.is_pointwise and tensor.ndim == 2 else tensor
            for part, tensor in tensors.items()
        }
    others = [key for key in state_dict if key not in parts]
    _check_foreign([key for key in others if _is_inside(layout, key, prefix)])
    return Weights(layout, prefix.removesuffix(LAYOUTS[layout].root), tensors, others)


def _read_keys(state_dict: dict[str, Tensor]) -> dict[str, dict[str, tuple[Part, str] | None]]:
    """What each key names in each layout, and the prefix before that; None for nothing."""
    matches = map(MIXER_KEY.search, state_dict)
    mixer_kinds = tuple(sorted({match[1] for match in matches if match}))
    if len(mixer_kinds) > MAX_KINDS:
        raise CheckpointError(f'it has {len(mixer_kinds)} kinds of tensors in its token mixers')
    found = {}
    for layout in READ_AS:
        known = _backbone_keys(layout, mixer_kinds)
        found[layout] = {key: _split(known, key) for key in state_dict}
    return found


def _elect(found: dict[str, dict[str, tuple[Part, str] | None]], prefix: str) -> tuple[str, str]:
    """The layout and the prefix that most keys fit."""
    votes = Counter(
        (layout, pair[1])
        for layout, keys in found.items()
        for pair in keys.values()
        if pair and pair[0].name != 'out_norm' and pair[1].startswith(prefix)
    )
    if not votes:
        keys = ', '.join(list(found['official'])[:5]) or 'none'
        behind = f' behind {prefix!r}' if prefix else ''
        raise CheckpointError(
            f'it holds no tensor of a PoolFormer{behind}. Its first keys: {keys}. '
            f'Known layouts: {", ".join(LAYOUTS)}'
        )
    (layout, prefix), most = votes.most_common(1)[0]
    rivals = [other for (_, other), count in votes.items() if other != prefix and 2 * count > most]
    if rivals:
        names = ', '.join(map(repr, rivals[:5]))
        raise CheckpointError(
            f'it holds several PoolFormers, behind {prefix!r} and {names}: say which with prefix='
        )
    return layout, prefix


def _classifier_keys(layout: str, prefix: str) -> dict[str, Part]:
    """The names of the classifier beside a backbone behind ``prefix``."""
    root = LAYOUTS[layout].root
    parts = {}
    for name in LAYOUTS[layout].classifier:
        for kind in ('weight', 'bias'):
            part = Part(name, kind=kind)
            key = part.key(layout)
            # Where the file lacks the root, it does so here too.
            outer = prefix if key.startswith(root) else prefix.removesuffix(root)
            parts[outer + key.removeprefix(root)] = part
    return parts


def _check_foreign(foreign: list[str]) -> None:
    if foreign:
        raise CheckpointError(
            f'it has {len(foreign)} tensors that a PoolFormer does not have '
            f'({", ".join(foreign[:5])}): it is another MetaFormer, or has a norm_cfg or act_cfg '
            'that init_cfg does not take (load_from takes whole models with any)'
        )


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
        # StarReLU, which has parameters, tells the blocks of the second paper.
        act = 'star_relu' if any(part.name == 'act' for part in self.tensors) else 'gelu'
        return Arch(tuple(layers), tuple(dims), token_mixers=tuple(mixers), act=act)

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
                tensors = {(p.name, p.kind) for p in inside if p.name in IN_BLOCKS}
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
        return tuple(arch.layers), tuple(arch.embed_dims), mixers, arch.act

    known = {**ARCHS, **METAFORMERS}
    return [name for name in known if tensors_of(known[name]) == tensors_of(arch)]


def _is_linear(layout: str, part: Part, mixer: str) -> bool:
    """Whether a layout keeps the kernel of a 1×1 convolution as a matrix."""
    return layout == 'baselines' or (
        layout == 'timm' and part.name != 'mixer' and mixer == 'attention'
    )


def _mixer_name(mixer: str | dict) -> str:
    name = mixer['type'] if isinstance(mixer, dict) else mixer
    return 'pooling' if name == 'identity' else name


def _without_pos_entries(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the official hybrids our names: there, position embeddings count in network."""
    found = [re.fullmatch(r'(.*)network\.(\d{1,3})\.pos_embed', key) for key in state_dict]
    found = [match for match in found if match]
    if not 0 < len(found) <= NUM_STAGES:
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
