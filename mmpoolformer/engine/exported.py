"""A model file of :mod:`mmpoolformer.exporting` in the place of a checkpoint."""

from __future__ import annotations

import argparse

from mmengine.config import Config

from ..exporting import ExportedModel, is_model_file, open_model
from ..utils.config_tree import type_of
from ..utils.errors import LaunchError, some

__all__ = ['is_model_file', 'load_model_file', 'prepare_config']
# Options that change a PyTorch model, which is not in such a file any more.
OF_PYTORCH = ('deploy', 'compile', 'tta')


def prepare_config(cfg: Config) -> None:
    """Take away from a config what works on PyTorch's weights."""
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if type_of(hook) != 'EMAHook']


def load_model_file(
    cfg: Config, args: argparse.Namespace, classes: list[str] | None
) -> ExportedModel:
    """Load the model file of the command line.

    Args:
        cfg: The config that it is to fit.
        args: ``checkpoint`` is the file; see :func:`~.launch.add_common_arguments`.
        classes: Those that the config's test set names, if it does.

    Raises:
        LaunchError: It cannot be loaded, is of another config, or an option works on PyTorch's
            models alone.
    """
    for option in OF_PYTORCH:
        if getattr(args, option, False):
            raise LaunchError(f'--{option} works on a checkpoint, and {args.checkpoint} is none')
    if args.launcher != 'none':
        raise LaunchError(f'{args.checkpoint} runs in one process: leave out --launcher')
    runtime = open_model(args.checkpoint, allow_pickle=args.allow_pickle)
    meta = runtime.meta
    if classes and list(classes) != meta.classes:
        raise LaunchError(
            f'{args.checkpoint} has the classes {some(meta.classes)}, and the test set of the '
            f'config has {some(classes)}: give the config that it was exported from'
        )
    meta.check_config(cfg, runtime.path)
    return ExportedModel.of(runtime)
