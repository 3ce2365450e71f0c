"""A trained model, ready to predict: mmdet's and mmseg's inferencers, with what they leave open.

The config is always given, so that none from inside a checkpoint is executed, and weights that do
not fit are an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmengine.infer import BaseInferencer
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn

from ..datasets.evaluation import check_pipelines
from ..deploy import compile_for_inference, switch_to_deploy
from ..utils.errors import LaunchError, join, one_line, printed
from ..utils.memory import reuse_freed_memory
from .checks import CfgOptions, check_checkpoints, nearest
from .dataset_meta import dataset_meta, meta_of_config
from .exported import is_model_file, load_model_file
from .hooks import check_weights, watch_outputs
from .launch import CONFIG_HELP, load_config, require

VISUALIZERS = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer'}
LONGEST_MESSAGE = 2000


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every program takes that runs a trained model on images."""
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        'checkpoint', help='checkpoint file or URL, or a model file of tools/export.py'
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT')
    parser.add_argument('--device', help='cpu, cuda:0, … (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override config entries, for example model.test_cfg.score_thr=0',
    )
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='read checkpoints that execute code; only for files whose author you trust',
    )
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)  # nothing is trained


def add_deploy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what makes a trained model faster, with the same predictions."""
    parser.add_argument(
        '--deploy', action='store_true', help='fold what inference does not need (switch_to_deploy)'
    )
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile the backbone; the start takes longer'
    )


def deploy(model: nn.Module, args: argparse.Namespace) -> None:
    """Do what :func:`add_deploy_arguments` lets the user ask for, once the weights are loaded.

    Raises:
        LaunchError: There is nothing to fold.
    """
    if args.deploy and not switch_to_deploy(model):
        raise LaunchError('--deploy: no part of this model has switch_to_deploy')
    if args.compile:
        while hasattr(model, 'module'):  # test-time augmentation and distributed wrappers
            model = model.module
        compile_for_inference(model.backbone)


def misfit(checkpoint: str, error: Exception) -> LaunchError:
    """The message for weights that PyTorch did not load into a model."""
    problem = str(error)
    more = '' if len(problem) < LONGEST_MESSAGE else ' …'
    return LaunchError(f'{checkpoint} does not fit the model: {problem[:LONGEST_MESSAGE]}{more}')


def report_passed_over(problems: list[str]) -> None:
    """Name the inputs that nothing was done for, and end with 1 if there are any."""
    for problem in problems:
        print(printed(f'passed over: {problem}'), file=sys.stderr)
    if problems:
        sys.exit(1)


def load_inferencer(args: argparse.Namespace) -> BaseInferencer:
    """Build the inferencer of the config's toolbox, with every weight of the checkpoint.

    Args:
        args: See :func:`add_inference_arguments`; ``checkpoint`` may be a model file.

    Raises:
        LaunchError: Config, checkpoint, classes and device do not fit together.
        CheckpointError: The checkpoint cannot be read.
    """
    reuse_freed_memory()
    matplotlib.rcParams['text.parse_math'] = False  # names of classes are drawn as they are
    device = _check_device(args.device)
    cfg = load_config(args)
    require(cfg, 'test_dataloader.dataset.pipeline', 'to predict')
    if cfg.default_scope not in VISUALIZERS:
        raise LaunchError(
            f'{args.config}: default_scope={cfg.default_scope!r}; {join(VISUALIZERS)} can predict'
        )
    path = ('test_dataloader', 'dataset')
    for problem in check_pipelines(cfg.test_dataloader.dataset, path, cfg.default_scope):
        raise LaunchError(f'{problem.where}: {problem.detail}')
    weights, exported = args.checkpoint, None
    if is_model_file(weights):
        exported = load_model_file(cfg, args, meta_of_config(cfg).get('classes'))
        weights, device = None, 'cpu'
    else:
        cfg.load_from = weights
        check_checkpoints(cfg, 'test')
    # Without backends, which would log the pictures to where the training was logged.
    cfg.visualizer = dict(type=VISUALIZERS[cfg.default_scope], name='predictions')
    try:
        return _inferencer_class(cfg.default_scope, exported)(cfg, weights, device=device)
    except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
        raise LaunchError(
            f'the model cannot be built from {args.config}: {one_line(error)}'
        ) from error


def draw(inferencer: BaseInferencer, image: np.ndarray, sample) -> np.ndarray:
    """Draw all that a data sample holds on an image; both are RGB."""
    if inferencer.cfg.default_scope == 'mmdet':
        how = dict(pred_score_thr=-1.0)  # what is not wanted was taken away before
    else:
        how = dict(opacity=0.5)
    (picture,) = inferencer.visualize([image], [sample], return_vis=True, **how)
    return picture


def find_classes(names: list[str], known: list[str]) -> list[int]:
    """Positions of class names.

    Raises:
        LaunchError: A name is not known; names the nearest and those that are.
    """
    for name in names:
        if name not in known:
            near = nearest(name, known)
            meant = f'; did you mean {near!r}?' if near else '.'
            raise LaunchError(f'the model has no class {name!r}{meant} It has {join(known)}')
    return [known.index(name) for name in names]


def _check_device(name: str | None) -> str:
    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LaunchError(f'--device {name}: there are cpu, cuda and cuda:N') from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == 'cuda' and (device.index or 0) >= count:
        raise LaunchError(f'--device {name}: PyTorch finds {count} GPUs here; --device cpu works')
    return name


def _inferencer_class(scope: str, exported: nn.Module | None) -> type[BaseInferencer]:
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer as Base
    else:
        from mmseg.apis import MMSegInferencer as Base

    class Inferencer(Base):
        """The toolbox's own, which loads all weights or none, or has a model file."""

        def _init_model(self, cfg, weights, device='cpu'):
            if exported is None:
                return super()._init_model(cfg, weights, device)
            exported.cfg = cfg
            return exported.eval()

        def _load_weights_to_model(self, model, checkpoint, cfg):
            meta = dataset_meta(cfg, checkpoint)
            weights = checkpoint.get('state_dict', checkpoint)
            if isinstance(weights, dict):
                check_weights(weights, model.state_dict())
            try:
                _load_checkpoint_to_model(model, checkpoint, strict=True)
            except (RuntimeError, AttributeError, TypeError) as error:
                raise misfit(cfg.load_from, error) from error
            checkpoint = dict(checkpoint, meta=dict(dataset_meta=meta))
            super()._load_weights_to_model(model, checkpoint, cfg)
            model.dataset_meta['palette'] = meta['palette']  # tuples, for mmdet to draw with
            watch_outputs(model)

    return Inferencer


def check_not_among(files: list[Path], folder: Path) -> None:
    """Refuse to write into the folder that an input lies in.

    Raises:
        LaunchError: An input would be replaced by what is drawn on it.
    """
    for file in files:
        if file.resolve().parent == folder.resolve():
            raise LaunchError(f'{file} lies where pictures are written to: choose another --out')
