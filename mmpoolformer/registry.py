"""Registration: the only file of the package that knows the toolboxes' registries."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import MODELS, Registry

from .archs import ARCHS
from .metaformer import MetaFormer, PoolFormer

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
    ``mmdet.PoolFormer``; mmengine's root registry serves the rest. Importing a
    toolbox's ``registry`` module does not import its models.
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
            registries.append(import_module(f'{toolbox}.registry').MODELS)
        except Exception as error:  # a broken toolbox must not break the other one
            warnings.warn(
                f'{toolbox} is installed but cannot be imported, so PoolFormer is not '
                f'registered with it: {type(error).__name__}: {error}',
                stacklevel=3,
            )
    return registries
