"""The published architectures: the one table that feeds the rest."""

from __future__ import annotations

from typing import NamedTuple


class Arch(NamedTuple):
    """A four-stage MetaFormer. The defaults are those of PoolFormer.

    Attributes:
        layers: Blocks per stage.
        embed_dims: Channels per stage.
        mlp_ratios: Hidden width of the channel MLP over ``embed_dims``.
        layer_scale_init_value: Initial value of LayerScale.
        token_mixers: Name or config of the token mixer per stage.
        norm: Norm of the blocks: ``'group'``, over channels and positions (GroupNorm with one
            group), or ``'channel'``, over the channels of a position (LayerNorm).
        baseline: Blocks of the second paper: StarReLU, no biases, no LayerScale, scaled
            residuals in the last two stages, norms after the stem and before each downsampling.
        pos_embeds: Side of the square position embedding before a stage, or ``None``.
    """

    layers: tuple[int, ...]
    embed_dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    layer_scale_init_value: float = 1e-5
    token_mixers: tuple[str | dict, ...] = ('pooling', 'pooling', 'pooling', 'pooling')
    norm: str = 'group'
    baseline: bool = False
    pos_embeds: tuple[int | None, ...] = (None, None, None, None)


# Table 1 and the training details of arXiv 2111.11418.
ARCHS: dict[str, Arch] = {
    's12': Arch((2, 2, 6, 2), (64, 128, 320, 512)),
    's24': Arch((4, 4, 12, 4), (64, 128, 320, 512)),
    's36': Arch((6, 6, 18, 6), (64, 128, 320, 512), layer_scale_init_value=1e-6),
    'm36': Arch((6, 6, 18, 6), (96, 192, 384, 768), layer_scale_init_value=1e-6),
    'm48': Arch((8, 8, 24, 8), (96, 192, 384, 768), layer_scale_init_value=1e-6),
}

POOL, CONV, ATTENTION = 'pooling', 'sep_conv', 'attention'
BIASED_ATTENTION = dict(type='attention', proj_bias=True)

# The ablations of arXiv 2111.11418, Table 5, for 224×224 images where a mixer depends on it.
ABLATIONS: dict[str, Arch] = {
    f'metaformer_{name}_s12': ARCHS['s12']._replace(**fields)
    for name, fields in {
        'id': dict(token_mixers=('identity',) * 4),
        'pppa': dict(
            token_mixers=(POOL, POOL, POOL, BIASED_ATTENTION),
            norm='channel',
            pos_embeds=(None, None, None, 7),
        ),
        'ppaa': dict(
            token_mixers=(POOL, POOL, BIASED_ATTENTION, BIASED_ATTENTION),
            norm='channel',
            pos_embeds=(None, None, 14, None),
        ),
        'pppf': dict(token_mixers=(POOL, POOL, POOL, 'spatial_mlp')),
        'ppff': dict(token_mixers=(POOL, POOL, 'spatial_mlp', 'spatial_mlp')),
    }.items()
}

# arXiv 2210.13452, Tables 1 and 2.
CONV_SIZES: dict[str, Arch] = {
    's18': Arch((3, 3, 9, 3), (64, 128, 320, 512)),
    's36': Arch((3, 12, 18, 3), (64, 128, 320, 512)),
    'm36': Arch((3, 12, 18, 3), (96, 192, 384, 576)),
    'b36': Arch((3, 12, 18, 3), (128, 256, 512, 768)),
}
BASELINES: dict[str, Arch] = {
    f'{family}_{size}': arch._replace(token_mixers=mixers, norm=norm, baseline=True)
    for family, sizes, norm, mixers in (
        # The first of those whose files look the same is what a report calls them.
        ('poolformerv2', ARCHS, 'group', (POOL,) * 4),
        ('identityformer', ARCHS, 'group', ('identity',) * 4),
        ('randformer', ARCHS, 'group', ('identity', 'identity', 'random', 'random')),
        ('convformer', CONV_SIZES, 'channel', (CONV,) * 4),
        ('caformer', CONV_SIZES, 'channel', (CONV, CONV, ATTENTION, ATTENTION)),
    )
    for size, arch in sizes.items()
}
# Every name that MetaFormer takes.
METAFORMERS: dict[str, Arch] = {
    **{f'poolformer_{name}': arch for name, arch in ARCHS.items()},
    **ABLATIONS,
    **BASELINES,
}

NUM_STAGES = 4

RELEASE = 'https://github.com/sail-sg/poolformer/releases/download/v1.0'
BASELINE_RELEASE = 'https://huggingface.co/sail/dl/resolve/main'


def official_weights(name: str) -> str:
    """URL of the ImageNet-1K weights of a published architecture, at the official repositories.

    Args:
        name: A name in :data:`ARCHS` or :data:`METAFORMERS`.

    Raises:
        ValueError: Not a published name.
    """
    if name in ARCHS:
        name = f'poolformer_{name}'
    if name in BASELINES:
        return f'{BASELINE_RELEASE}/{name.split("_")[0]}/{name}.pth'
    if name not in METAFORMERS:
        raise ValueError(f'there are no official weights for {name!r}: use one of {known_names()}')
    sized = name in ABLATIONS and name != 'metaformer_id_s12'
    return f'{RELEASE}/{name}{"_224" if sized else ""}.pth.tar'


def known_names() -> list[str]:
    """Every name that an ``arch`` argument takes."""
    return [*ARCHS, *METAFORMERS]


def resolve_arch(arch: str | dict | Arch) -> Arch:
    """Look an architecture up by name, or check one written out as a dict.

    Args:
        arch: A name in :data:`ARCHS` or :data:`METAFORMERS`, an :class:`Arch`, or a dict of its
            fields (``layers`` and ``embed_dims`` required).

    Returns:
        The architecture.

    Raises:
        ValueError: Unknown name or field, missing field, or a field without
            four positive numbers.
        TypeError: ``arch`` is none of the accepted types.
    """
    if isinstance(arch, str):
        if arch not in ARCHS and arch not in METAFORMERS:
            raise ValueError(
                f'arch={arch!r} is unknown: use one of {known_names()}, '
                'or a dict with layers and embed_dims'
            )
        return ARCHS[arch] if arch in ARCHS else METAFORMERS[arch]
    if isinstance(arch, dict):
        arch = _arch_from_dict(arch)
    if not isinstance(arch, Arch):
        raise TypeError(
            f'arch must be one of {known_names()} or a dict, got {type(arch).__name__}: {arch!r}'
        )
    for field in ('layers', 'embed_dims', 'mlp_ratios'):
        values = getattr(arch, field)
        is_valid = is_number if field == 'mlp_ratios' else is_integer
        if (
            not isinstance(values, (list, tuple))
            or len(values) != NUM_STAGES
            or not all(is_valid(value) and value > 0 for value in values)
        ):
            raise ValueError(
                f'arch[{field!r}]={values!r}: give {NUM_STAGES} positive numbers, one per stage, '
                f'as s12 has {getattr(ARCHS["s12"], field)}'
            )
    if not is_number(arch.layer_scale_init_value):
        raise ValueError(
            f"arch['layer_scale_init_value']={arch.layer_scale_init_value!r}: give a number"
        )
    if arch.norm not in ('group', 'channel'):
        raise ValueError(f"arch['norm']={arch.norm!r}: give 'group' or 'channel'")
    for field in ('token_mixers', 'pos_embeds'):
        values = getattr(arch, field)
        if not isinstance(values, (list, tuple)) or len(values) != NUM_STAGES:
            raise ValueError(f'arch[{field!r}]={values!r}: give {NUM_STAGES}, one per stage')
    if not all(side is None or (is_integer(side) and side > 0) for side in arch.pos_embeds):
        raise ValueError(
            f"arch['pos_embeds']={arch.pos_embeds!r}: give None or a number of positions per stage"
        )
    if not isinstance(arch.baseline, bool):
        raise ValueError(f"arch['baseline']={arch.baseline!r}: give True or False")
    return arch


def _arch_from_dict(fields: dict) -> Arch:
    unknown = sorted(set(fields) - set(Arch._fields))
    missing = sorted({'layers', 'embed_dims'} - set(fields))
    if unknown or missing:
        problem = f'unknown fields {unknown}' if unknown else f'missing fields {missing}'
        raise ValueError(
            f'arch={dict(fields)!r} has {problem}: the fields are {list(Arch._fields)}'
        )
    return Arch(**fields)


def is_integer(value) -> bool:
    """Whether a config's value is an integer, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a config's value is an integer or a float."""
    return is_integer(value) or isinstance(value, float)
