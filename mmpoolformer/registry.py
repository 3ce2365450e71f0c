"""Registration: names of the backbones in mmengine's registry and the toolboxes'.

A toolbox's ``registry`` module does not import its models.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import import_modules_from_strings
from torch import nn

from .archs import ARCHS
from .models import MetaFormer, PoolFormer
from .utils.errors import LaunchError

TOOLBOXES = ('mmdet', 'mmseg')


def _named_backbone(arch: str):
    def backbone(style: str = 'pytorch', **kwargs) -> PoolFormer:
        return PoolFormer(arch=arch, **kwargs)

    backbone.__name__ = f'poolformer_{arch}_feat'
    backbone.__doc__ = (
        f'PoolFormer-{arch.upper()} as the official configs name it. '
        '``style`` is accepted because they pass it, and has no meaning.'
    )
    return backbone


# What configs may name, with and without a toolbox's scope.
BACKBONES = {
    'MetaFormer': MetaFormer,
    'PoolFormer': PoolFormer,
    **{f'poolformer_{arch}_feat': _named_backbone(arch) for arch in ARCHS},
}


def register_backbones() -> None:
    """Register the backbones with mmengine and with each installed toolbox.

    A toolbox's own registry is needed for scoped names such as
    ``mmdet.PoolFormer``; mmengine's root registry serves the rest.
    """
    for registry in (MODELS, *_toolbox_registries()):
        for name, backbone in BACKBONES.items():
            registry.register_module(name, module=backbone)


def _toolbox_registries() -> list[Registry]:
    registries = []
    for toolbox in TOOLBOXES:
        if find_spec(toolbox) is None:
            continue
        try:
            registries.append(_models_of(toolbox))
        except Exception as error:  # a broken toolbox must not break the other one
            warnings.warn(
                f'{toolbox} is installed but cannot be imported, so PoolFormer is not '
                f'registered with it: {type(error).__name__}: {error}',
                stacklevel=3,
            )
    return registries


def _models_of(toolbox: str) -> Registry:
    return import_module(f'{toolbox}.registry').MODELS


def import_models(toolbox: str) -> None:
    """Import the models of a toolbox, which registers them."""
    import_module(f'{toolbox}.models')


def is_registered(kind: Any, toolbox: str) -> bool:
    """Whether a toolbox, or the scope in the name, knows a type of model.

    Args:
        kind: The ``type`` of a config; a class is always known.
        toolbox: The scope of names that have none.
    """
    if not isinstance(kind, str):
        return True
    if find_spec(kind.split('.')[0] if '.' in kind else toolbox) is None:
        return False
    with DefaultScope.overwrite_default_scope(toolbox):
        return _models_of(toolbox).get(kind) is not None


def build_model(cfg: dict, toolbox: str) -> nn.Module:
    """Build a model or a part of one from its config, in the scope of a toolbox."""
    with DefaultScope.overwrite_default_scope(toolbox):
        return _models_of(toolbox).build(cfg)


def custom_modules(cfg: Config) -> list[str]:
    """The modules that a config names in ``custom_imports``, a new list.

    Raises:
        LaunchError: It is no dictionary with ``imports``.
    """
    given = cfg.get('custom_imports') or {}
    if not isinstance(given, dict):
        raise LaunchError(
            f'custom_imports={given!r} is not what mmengine takes: write '
            f'custom_imports=dict(imports={[given] if isinstance(given, str) else list(given)!r})'
        )
    modules = given.get('imports') or []
    return [modules] if isinstance(modules, str) else list(modules)


def import_custom_modules(cfg: Config, must_exist: bool = True) -> None:
    """Import what a config names in ``custom_imports``, which registers types of its own.

    Args:
        cfg: The config.
        must_exist: Whether a module that cannot be imported is an error, unless the config
            allows it; otherwise it is passed over.

    Raises:
        ImportError: A module cannot be imported.
        LaunchError: See :func:`custom_modules`.
    """
    names = custom_modules(cfg)
    if must_exist and names:
        import_modules_from_strings(**cfg.custom_imports)
    elif not must_exist:
        for name in names:
            with suppress(ImportError):
                import_module(name)
