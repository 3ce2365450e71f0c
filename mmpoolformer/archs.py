"""The published architectures: the one table that feeds the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Arch(NamedTuple):
    """A four-stage MetaFormer. The defaults are those of PoolFormer.

    Attributes:
        layers: Blocks per stage.
        embed_dims: Channels per stage.
        mlp_ratios: Hidden width of the channel MLP over ``embed_dims``.
        layer_scale_init_value: Initial value of LayerScale on the branches, or ``None`` for
            architectures that have ResScale instead.
        token_mixers: Name or config of the token mixer per stage.
        norm: What the norms run over: ``'group'``, channels and positions (GroupNorm with one
            group), or ``'channel'``, the channels of a position (LayerNorm).
        pos_embeds: Side of the square position embedding before a stage, or ``None``.
        res_scale_init_values: Initial value of ResScale on the shortcuts of a stage, or ``None``.
        act: Activation of the channel MLP: ``'gelu'`` or ``'star_relu'``.
        mlp_bias: Whether the convolutions of the channel MLP have biases.
        norm_bias: Whether the norms of the blocks have biases.
        norm_eps: What the norms of the blocks add to the variance.
        out_norm_eps: What the norms of the outputs add to the variance.
        downsample_norm: Whether there are norms after the stem and before each downsampling.
        has_classifier: Whether the classifier is one linear layer, the one that there is here.
    """

    layers: tuple[int, ...]
    embed_dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    layer_scale_init_value: float | None = 1e-5
    token_mixers: tuple[str | dict, ...] = ('pooling', 'pooling', 'pooling', 'pooling')
    norm: str = 'group'
    pos_embeds: tuple[int | None, ...] = (None, None, None, None)
    res_scale_init_values: tuple[float | None, ...] = (None, None, None, None)
    act: str = 'gelu'
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-5
    out_norm_eps: float = 1e-5
    downsample_norm: bool = False
    has_classifier: bool = True


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
# What they share.
BASELINE = dict(
    layer_scale_init_value=None,
    res_scale_init_values=(None, None, 1.0, 1.0),
    act='star_relu',
    mlp_bias=False,
    norm_bias=False,
    norm_eps=1e-6,
    downsample_norm=True,
    has_classifier=False,
)
OVER_CHANNELS = dict(norm='channel', out_norm_eps=1e-6)
BASELINES: dict[str, Arch] = {
    f'{family}_{size}': arch._replace(**BASELINE, **fields)
    for family, sizes, fields in (
        # The first of those whose files look the same is what a report calls them.
        ('poolformerv2', ARCHS, dict(token_mixers=(POOL,) * 4)),
        ('identityformer', ARCHS, dict(token_mixers=('identity',) * 4)),
        ('randformer', ARCHS, dict(token_mixers=('identity', 'identity', 'random', 'random'))),
        ('convformer', CONV_SIZES, dict(OVER_CHANNELS, token_mixers=(CONV,) * 4)),
        (
            'caformer',
            CONV_SIZES,
            dict(OVER_CHANNELS, token_mixers=(CONV, CONV, ATTENTION, ATTENTION)),
        ),
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


# What ConvFormer and CAFormer are published as, beside ImageNet-1K at 224²: the end of a file's
# name, and what it was trained on.
VARIANTS = {
    '384': 'ImageNet-1K, fine-tuned at 384²',
    'in21k': 'ImageNet-21K',
    'in21ft1k': 'ImageNet-21K, fine-tuned on ImageNet-1K',
    '384_in21ft1k': 'ImageNet-21K, fine-tuned on ImageNet-1K at 384²',
}
WITH_VARIANTS = ('convformer', 'caformer')
OFFICIAL = 'official'


def official_variant(checkpoint: str | None) -> str | None:
    """Which published weights ``'official'`` or ``'official:VARIANT'`` asks for.

    Returns:
        A key of :data:`VARIANTS`, ``''`` for plain ``'official'``, and ``None`` for what names no
        published weights: a path, a URL.

    Raises:
        ValueError: No such variant.
    """
    kind, colon, variant = str(checkpoint).partition(':')
    if kind != OFFICIAL:
        return None
    if colon and variant not in VARIANTS:
        allowed = ', '.join(f'{OFFICIAL}:{name}' for name in VARIANTS)
        raise ValueError(f'checkpoint={checkpoint!r}: give {OFFICIAL}, or one of {allowed}')
    return variant


def official_weights(name: str, variant: str = '') -> str:
    """URL of the weights of a published architecture, at the official repositories.

    Args:
        name: A name in :data:`ARCHS` or :data:`METAFORMERS`.
        variant: A key of :data:`VARIANTS`; by default those trained on ImageNet-1K at 224².

    Raises:
        ValueError: Not a published name, or not with this variant.
    """
    if name in ARCHS:
        name = f'poolformer_{name}'
    if name not in METAFORMERS:
        raise ValueError(f'there are no official weights for {name!r}: use one of {known_names()}')
    family = name.split('_')[0]
    if variant and family not in WITH_VARIANTS:
        raise ValueError(
            f'{name} is published for ImageNet-1K at 224² alone, not as {variant!r}: give '
            f"checkpoint='{OFFICIAL}', or take {' or '.join(WITH_VARIANTS)}"
        )
    if name in BASELINES:
        return f'{BASELINE_RELEASE}/{family}/{name}{variant and f"_{variant}"}.pth'
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
        ValueError: Unknown name or field, missing field, or a field with another value than
            :class:`Arch` describes.
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
    _check_fields(arch)
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


def _is_positive_integer(value) -> bool:
    return is_integer(value) and value > 0


def _is_positive(value) -> bool:
    return is_number(value) and value > 0


def _is_bool(value) -> bool:
    return isinstance(value, bool)


def _is_one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _per_stage(fits: Callable[[Any], bool] = lambda value: True) -> Callable[[Any], bool]:
    return lambda values: (
        isinstance(values, (list, tuple)) and len(values) == NUM_STAGES and all(map(fits, values))
    )


def _example(field: str) -> str:
    example = getattr(ARCHS['s12'], field)
    return f'{NUM_STAGES} positive numbers, one per stage, as s12 has {example}'


# Per field, what its values must be, and how an error says so.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'layers': (_per_stage(_is_positive_integer), _example('layers')),
    'embed_dims': (_per_stage(_is_positive_integer), _example('embed_dims')),
    'mlp_ratios': (_per_stage(_is_positive), _example('mlp_ratios')),
    'layer_scale_init_value': (
        _or_none(is_number),
        'a number, or None beside res_scale_init_values',
    ),
    'token_mixers': (_per_stage(), f'{NUM_STAGES}, one per stage'),
    'norm': (_is_one_of('group', 'channel'), "'group' or 'channel'"),
    'pos_embeds': (
        _per_stage(_or_none(_is_positive_integer)),
        f'{NUM_STAGES}, per stage None or a number of positions',
    ),
    'res_scale_init_values': (
        _per_stage(_or_none(is_number)),
        f'{NUM_STAGES}, per stage None or a number',
    ),
    'act': (_is_one_of('gelu', 'star_relu'), "'gelu' or 'star_relu'"),
    'norm_eps': (_is_positive, 'a positive number'),
    'out_norm_eps': (_is_positive, 'a positive number'),
    **dict.fromkeys(
        ('mlp_bias', 'norm_bias', 'downsample_norm', 'has_classifier'), (_is_bool, 'True or False')
    ),
}


def _check_fields(arch: Arch) -> None:
    for field, value in arch._asdict().items():
        fits, allowed = FIELDS[field]
        if not fits(value):
            raise ValueError(f'arch[{field!r}]={value!r}: give {allowed}')
    scales = (arch.layer_scale_init_value, *arch.res_scale_init_values)
    if all(scale is None for scale in scales):
        field = 'layer_scale_init_value'
        raise ValueError(f'arch[{field!r}]=None: give {FIELDS[field][1]}')
