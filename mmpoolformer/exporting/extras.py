"""The packages of the extra ``export``, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

from ..utils.errors import LaunchError, one_line

OLDEST_TORCH = (2, 13)  # no earlier one was tried


def require(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        LaunchError: It is not installed, or cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise LaunchError(
            f'this needs {name} ({one_line(error)}): '
            "pip install 'mmpoolformer[export]', or the lines under Export in "
            'requirements/maintained.txt'
        ) from error


def require_exporter() -> None:
    """Refuse a torch whose exporter does not take whole models.

    Raises:
        LaunchError: Names the version that does.
    """
    version = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if version < OLDEST_TORCH:
        needed = '.'.join(map(str, OLDEST_TORCH))
        raise LaunchError(
            f'torch {torch.__version__} cannot export whole models: torch {needed} or later can. '
            'Export on the maintained stack; it reads the same checkpoints'
        )
