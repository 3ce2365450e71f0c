"""The published PoolFormer architectures: the one table that feeds the rest."""

from __future__ import annotations

from typing import NamedTuple


class Arch(NamedTuple):
    """Widths and depths of a four-stage PoolFormer.

    Attributes:
        layers: Blocks per stage.
        embed_dims: Channels per stage.
        mlp_ratios: Hidden width of the channel MLP over ``embed_dims``.
        layer_scale_init_value: Initial value of LayerScale.
    """

    layers: tuple[int, ...]
    embed_dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    layer_scale_init_value: float = 1e-5


# Table 1 and the training details of arXiv 2111.11418.
ARCHS: dict[str, Arch] = {
    's12': Arch((2, 2, 6, 2), (64, 128, 320, 512)),
    's24': Arch((4, 4, 12, 4), (64, 128, 320, 512)),
    's36': Arch((6, 6, 18, 6), (64, 128, 320, 512), layer_scale_init_value=1e-6),
    'm36': Arch((6, 6, 18, 6), (96, 192, 384, 768), layer_scale_init_value=1e-6),
    'm48': Arch((8, 8, 24, 8), (96, 192, 384, 768), layer_scale_init_value=1e-6),
}

NUM_STAGES = 4

# ImageNet-1K weights of the official repository, per name in ARCHS.
OFFICIAL_WEIGHTS = (
    'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_{arch}.pth.tar'
)


def resolve_arch(arch: str | dict | Arch) -> Arch:
    """Look an architecture up by name, or check one written out as a dict.

    Args:
        arch: A name in :data:`ARCHS`, an :class:`Arch`, or a dict of its fields
            (``layers`` and ``embed_dims`` required).

    Returns:
        The architecture.

    Raises:
        ValueError: Unknown name or field, missing field, or a field without
            four positive numbers.
        TypeError: ``arch`` is none of the accepted types.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'arch={arch!r} is unknown: use one of {list(ARCHS)}, '
                'or a dict with layers and embed_dims'
            )
        return ARCHS[arch]
    if isinstance(arch, dict):
        arch = _arch_from_dict(arch)
    if not isinstance(arch, Arch):
        raise TypeError(
            f'arch must be one of {list(ARCHS)} or a dict, got {type(arch).__name__}: {arch!r}'
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
