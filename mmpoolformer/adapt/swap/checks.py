"""What a swap refuses: arguments that do not fit, configs that take no pyramid backbone."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

from mmengine.config import Config

from ...archs import Arch, known_names, official_variant, resolve_arch
from ...models import MetaFormer
from ...models.arguments import mixer_cfg, one_per_stage
from ...models.token_mixers import is_of_one_size
from ...registry import TOOLBOXES
from ...utils.config_tree import has, type_of
from ...utils.errors import join
from .rules import OFFICIAL_SIZE, REFUSED, SwapError

# Arguments of MetaFormer that a swap chooses, and what to give in their place.
CHOSEN = {'arch': 'arch', 'init_cfg': 'checkpoint', 'out_indices': None, 'fork_feat': None}


def check_arguments(arch, checkpoint: str | None, mixers: list[str], backbone_kwargs: dict) -> None:
    """Refuse what no MetaFormer takes, and official weights that there are not.

    Args:
        arch: As the user gave it.
        checkpoint: As the user gave it.
        mixers: See :func:`mixers_of`.
        backbone_kwargs: More arguments for the backbone.

    Raises:
        ValueError: There are no official weights for this.
        TypeError: The backbone has no such argument, or it is not the user's to give.
    """
    official = official_variant(checkpoint) is not None
    if official and not isinstance(arch, str):
        raise ValueError(
            f'checkpoint={checkpoint!r} exists for {join(known_names())}, not for an arch of your '
            'own: give checkpoint=None or a path'
        )
    allowed = set(inspect.signature(MetaFormer).parameters) - set(CHOSEN)
    for name in backbone_kwargs:
        if name in CHOSEN:
            remedy = f'give {CHOSEN[name]}' if CHOSEN[name] else 'leave it out'
            raise TypeError(f'{name} follows from the config that the backbone is put in: {remedy}')
        if name not in allowed:
            raise TypeError(f'MetaFormer has no argument {name!r}: it has {join(sorted(allowed))}')
    if official:
        _check_official_mixers(arch, mixers, backbone_kwargs.get('input_size'))


def _check_official_mixers(arch: str, mixers: list[str], input_size) -> None:
    own = mixers_of(resolve_arch(arch), None)
    if mixers != own:
        raise ValueError(
            f"checkpoint='official': the weights of {arch} are for {join(own)}, not for "
            f'{join(mixers)}: give checkpoint=None or a path'
        )
    sides = input_size if isinstance(input_size, (list, tuple)) else [input_size]
    if _sized(mixers) and not {*sides} <= {None, OFFICIAL_SIZE}:
        raise ValueError(
            f"checkpoint='official': the weights of {arch} mix images of "
            f'{OFFICIAL_SIZE}×{OFFICIAL_SIZE}, not of input_size={input_size!r}: give '
            'checkpoint=None or a path'
        )


def check_input_size(mixers: list[str], backbone_kwargs: dict) -> None:
    """Refuse mixers for images of one size without that size.

    Raises:
        SwapError: Names them and the remedy.
    """
    sized = _sized(mixers)
    if sized and 'input_size' not in backbone_kwargs:
        raise SwapError(
            f'{join(sized)} mixes images of one size only: resize or pad all images to it and '
            'call swap_backbone(cfg, …, input_size=(height, width), checkpoint=None), or take '
            'another arch'
        )


def mixers_of(arch: Arch, token_mixers) -> list[str]:
    """The names of the token mixers, one per stage."""
    mixers = one_per_stage(arch.token_mixers if token_mixers is None else token_mixers)
    return [type_of(mixer_cfg(mixer)) for mixer in mixers]


def _sized(mixers: list[str]) -> list[str]:
    return sorted({name for name in mixers if is_of_one_size(name)})


def scope_of(cfg: Config) -> str:
    """The toolbox that a config is for.

    Raises:
        SwapError: It has no model, or a toolbox that is unknown or not installed.
    """
    scope = cfg.get('default_scope')
    if not cfg.get('model'):
        raise SwapError('it has no model: it is a fragment for other configs')
    if scope not in TOOLBOXES:
        raise SwapError(f'default_scope={scope!r} is none of {join(TOOLBOXES)}')
    if find_spec(scope) is None:
        raise SwapError(f'it needs {scope}, which is not installed')
    return scope


def find_model(cfg: Config) -> tuple:
    """Path of the model that has the backbone: trackers and semi-supervision wrap it.

    Raises:
        SwapError: There is none, or a part of it is one of :data:`REFUSED`.
    """
    path: tuple = ('model',)
    node = cfg['model']
    while True:
        for key in (None, 'neck', 'decode_head', 'backbone'):
            part = node.get(key) if key else node
            part = part[0] if isinstance(part, list) and part else part
            if isinstance(part, dict) and type_of(part) in REFUSED:
                reason, nearest = REFUSED[type_of(part)]
                raise SwapError(f'{type_of(part)}: {reason}', nearest)
        if 'backbone' in node:
            return path
        if not has(node, 'detector'):
            raise SwapError(f'its model {type_of(node)} has no backbone')
        path, node = (*path, 'detector'), node['detector']
