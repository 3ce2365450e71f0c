"""Checks of the values that a backbone is given."""

from __future__ import annotations

from ..archs import NUM_STAGES, Arch, is_integer, is_number
from .token_mixers import TOKEN_MIXERS, FixedSizeMixer, Pooling

# The stem divides both sides by 4 and each of the three later stages by 2.
MIN_SIZE = 32


def check(value, name: str, valid: bool, allowed: str) -> None:
    if not valid:
        raise ValueError(f'{name}={value!r}: give {allowed}')


def is_int(value, minimum: int) -> bool:
    return is_integer(value) and value >= minimum


def is_rate(value) -> bool:
    return is_number(value) and 0 <= value < 1


# Per argument of MetaFormer, what its values must be, and how an error says so.
ALLOWED = {
    'in_channels': (lambda value: is_int(value, 1), 'a positive integer'),
    'pool_size': (lambda value: is_int(value, 1) and value % 2 == 1, 'an odd integer'),
    'drop_rate': (is_rate, 'a rate in [0, 1)'),
    'drop_path_rate': (is_rate, 'a rate in [0, 1)'),
    'layer_scale_init_value': (
        lambda value: value is None or is_number(value),
        "a number, or None for the arch's own",
    ),
    'num_classes': (lambda value: is_int(value, 1), 'a positive integer'),
    'frozen_stages': (
        lambda value: is_int(value, -1) and value <= NUM_STAGES,
        f'an integer from -1 (nothing frozen) to {NUM_STAGES} (all stages frozen)',
    ),
}


def check_arguments(**arguments) -> None:
    """Check arguments of MetaFormer that can be judged by themselves."""
    for name, value in arguments.items():
        fits, allowed = ALLOWED[name]
        check(value, name, fits(value), allowed)


def check_fork_feat(fork_feat: bool, arch: Arch) -> None:
    check(
        fork_feat,
        'fork_feat',
        fork_feat or arch.has_classifier,
        'True: this arch, as all of arXiv 2210.13452, has no classifier here',
    )


def check_layer_scale(value, arch: Arch) -> None:
    check(
        value,
        'layer_scale_init_value',
        value is None or arch.layer_scale_init_value is not None,
        'None: this arch has no LayerScale',
    )


def check_out_indices(out_indices) -> tuple[int, ...]:
    valid = (
        isinstance(out_indices, (list, tuple))
        and len(out_indices) > 0
        and all(is_int(i, 0) and i < NUM_STAGES for i in out_indices)
        and list(out_indices) == sorted(set(out_indices))
    )
    check(
        out_indices,
        'out_indices',
        valid,
        f'increasing stage numbers from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3) or (1, 2, 3)',
    )
    return tuple(out_indices)


def one_per_stage(token_mixers) -> list:
    """Write ``token_mixers`` out, one for each stage.

    Raises:
        ValueError: Neither one mixer nor one per stage.
    """
    if isinstance(token_mixers, (str, type, dict)):
        return [token_mixers] * NUM_STAGES
    if not isinstance(token_mixers, (list, tuple)) or len(token_mixers) != NUM_STAGES:
        raise ValueError(f'token_mixers={token_mixers!r}: give one, or {NUM_STAGES} in a list')
    return list(token_mixers)


def mixer_cfg(mixer: str | type | dict) -> dict:
    """Write a token mixer, which is a name, a class or a config, as a config of its own."""
    return dict(mixer) if isinstance(mixer, dict) else dict(type=mixer)


def mixer_cfgs(mixers, pool_size: int, input_size) -> list[dict]:
    """The config of each stage's token mixer, complete but for the channels."""
    sides = (input_size, input_size) if is_integer(input_size) else input_size
    valid = isinstance(sides, (list, tuple)) and len(sides) == 2
    check(
        input_size,
        'input_size',
        valid and all(is_int(side, MIN_SIZE) for side in sides),
        f'a side, or height and width, of at least {MIN_SIZE}',
    )
    cfgs = []
    for stage, mixer in enumerate(one_per_stage(mixers)):
        cfg = mixer_cfg(mixer)
        mixer_class = cfg.get('type')
        if isinstance(mixer_class, str):
            mixer_class = TOKEN_MIXERS.module_dict.get(mixer_class)
        check(
            mixer,
            'token_mixers',
            callable(mixer_class),
            f'one of {sorted(TOKEN_MIXERS.module_dict)}, or register yours with TOKEN_MIXERS and '
            'custom_imports',
        )
        base = mixer_class if isinstance(mixer_class, type) else object
        if issubclass(base, Pooling):
            cfg.setdefault('pool_size', pool_size)
        if issubclass(base, FixedSizeMixer):
            cfg.setdefault('size', tuple(_map_side(side, stage) for side in sides))
        cfgs.append(dict(cfg, type=mixer_class))
    return cfgs


def _map_side(side: int, stage: int) -> int:
    """Positions along a side of the image after the convolutions up to a stage."""
    side = (side + 2 * 2 - 7) // 4 + 1
    for _ in range(stage):
        side = (side + 2 * 1 - 3) // 2 + 1
    return side
