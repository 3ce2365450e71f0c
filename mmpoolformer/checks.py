"""Checks around a run: what it was given fits, and its loss stays finite."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .checkpoints import local_path
from .config_tree import type_of, walk
from .metaformer import MetaFormer
from .registry import BACKBONES

INSTALL_HINTS = {
    'mmdet': 'pip install onedl-mmdetection (or the classic mmdet)',
    'mmseg': 'pip install onedl-mmsegmentation (or the classic mmsegmentation)',
}
# The data of the config that each phase of a run reads.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}


class LaunchError(Exception):
    """A problem with the command line, the config or the files it names."""


class DataError(Exception):
    """A sample of the data set cannot be loaded; names its file."""


class NamingPipeline:
    """A data pipeline whose errors name the image they are about."""

    def __init__(self, pipeline: Callable):
        self.pipeline = pipeline

    def __call__(self, info: dict):
        name = info.get('img_path', info.get('img_id', 'a sample'))
        try:
            return self.pipeline(info)
        except Exception as error:  # of whatever kind, the sample is to blame
            cause = ' '.join(str(error).split())
            raise DataError(f'{name}: {type(error).__name__}: {cause}') from error

    def __getattr__(self, name: str):
        if name == 'pipeline':  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.pipeline, name)


def name_errors(dataset) -> None:
    """Make the errors of a data set, wrapped or not, name the image they are about."""
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            name_errors(inner)
    is_basic = not hasattr(dataset, 'dataset') and hasattr(dataset, 'pipeline')
    if is_basic and not isinstance(dataset.pipeline, NamingPipeline):
        dataset.pipeline = NamingPipeline(dataset.pipeline)


class CheckLoadedWeights(Hook):
    """Stop where mmengine would go on: no tensor of the checkpoint fits, or one holds NaN."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        weights = checkpoint.get('state_dict', checkpoint)
        if not isinstance(weights, dict):
            raise LaunchError(f'the checkpoint holds {type(weights).__name__}, not a state dict')
        own = {f'{start}{key}' for key in runner.model.state_dict() for start in ('', 'module.')}
        own |= {key.removeprefix('module.') for key in own}
        fitting = {key: weights[key] for key in weights if key in own}
        if not fitting:
            keys = ', '.join(map(str, list(weights)[:5]))
            raise LaunchError(f'no tensor of the checkpoint fits the model; its keys: {keys}, …')
        for key, value in fitting.items():
            if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
                raise LaunchError(f'the checkpoint holds NaN or Inf in {key}')


class CheckLoss(Hook):
    """Stop at the first loss that is NaN or Inf, and name the images it came from.

    Under float16 a loss may overflow now and then, and the gradient scaler skips that step:
    there the run stops when it happens ``patience`` times in a row.
    """

    priority = 'VERY_HIGH'  # before a checkpoint is written

    def __init__(self, patience: int = 10):
        self.patience = patience
        self.in_a_row = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k and torch.is_tensor(v)}
        wrong = {key: value.mean().item() for key, value in losses.items() if _is_bad(value)}
        if not wrong:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if hasattr(runner.optim_wrapper, 'loss_scaler') and self.in_a_row < self.patience:
            runner.logger.warning(f'the loss is not finite at iteration {runner.iter + 1}: {wrong}')
            return
        values = ', '.join(f'{key}={value}' for key, value in wrong.items())
        raise LaunchError(
            f'the loss is not finite at iteration {runner.iter + 1}: {values}.\n'
            f'Images: {", ".join(image_names(data_batch)) or "unknown"}.\n'
            'Look for broken annotations with tools/check_dataset.py; try a smaller learning rate, '
            'optim_wrapper.clip_grad="dict(max_norm=1)", or with --amp the type bfloat16. '
            'The last checkpoint is from before; go on with --resume'
        )


def _is_bad(value: torch.Tensor) -> bool:
    return not bool(value.isfinite().all())


def image_names(data_batch) -> list[str]:
    """The image files in a batch of mmdet or mmseg, as its data samples name them."""
    if isinstance(data_batch, dict):
        data_batch = list(data_batch.values())
    if isinstance(data_batch, (list, tuple)):
        return [name for part in data_batch for name in image_names(part)]
    metainfo = getattr(data_batch, 'metainfo', {})
    names = [metainfo['img_path']] if 'img_path' in metainfo else []
    return names + image_names(getattr(data_batch, 'video_data_samples', []))


def check_options(cfg: Config, options: dict) -> None:
    """Refuse overrides whose key looks like another one of the config, misspelt.

    A key that is new and like no other is an addition.

    Args:
        cfg: The config before the overrides.
        options: Dotted keys and values of ``--cfg-options``.

    Raises:
        LaunchError: Names the key and what it should probably be.
    """
    for dotted in options:
        node, done = cfg, []
        for key in dotted.split('.'):
            if isinstance(node, (list, tuple)) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, (dict, Config)) and key in node:
                node = node[key]
            else:
                known = list(node) if isinstance(node, (dict, Config)) else []
                near = nearest(key, known)
                if near:
                    meant = '.'.join([*done, near])
                    raise LaunchError(
                        f'--cfg-options {dotted}: there is no {key!r} in '
                        f'{".".join(done) or "the config"}; did you mean {meant}?'
                    )
                break
            done.append(key)


def check_backbones(cfg: Config) -> None:
    """Refuse arguments that our backbones do not have, before anything is built.

    Raises:
        LaunchError: Names the argument and the nearest that exists.
    """
    parameters = list(inspect.signature(MetaFormer).parameters)
    for path, node in walk(cfg.model, ('model',)):
        if type_of(node) not in BACKBONES:
            continue
        for name in node:
            if name not in (*parameters, 'type', 'style', '_scope_'):
                near = nearest(name, parameters)
                remedy = f'did you mean {near}?' if near else f'it has {", ".join(parameters)}'
                where = '.'.join(map(str, path))
                raise LaunchError(f'{where}: {type_of(node)} has no argument {name!r}; {remedy}')


def check_installed(cfg: Config, path: Path) -> None:
    """Refuse a config of a toolbox that is not installed, and an mmcv without its ops.

    Args:
        cfg: The complete config.
        path: Its file, for the message.

    Raises:
        LaunchError: Names what is missing and how to install it.
    """
    scopes = {cfg.default_scope}
    for _, node in walk(cfg.to_dict()):
        if isinstance(node.get('type'), str) and '.' in node['type']:
            scopes.add(node['type'].split('.')[0])
    for scope in sorted(scopes):
        if find_spec(scope) is None:
            hint = INSTALL_HINTS.get(scope, f'install the package that provides {scope}')
            raise LaunchError(f'{path} needs {scope}, which is not installed: {hint}')
    if find_spec('mmcv._ext') is None:
        raise LaunchError(
            'mmcv is installed without its compiled ops, which mmdet and mmseg need: '
            'run `make setup`, or rebuild mmcv with --no-build-isolation beside the installed torch'
        )


def check_checkpoints(cfg: Config, phase: str) -> None:
    """Refuse a config that names checkpoint files that do not exist.

    Raises:
        LaunchError: Names the file.
    """
    checkpoints = [('load_from', cfg.get('load_from'))]
    if phase == 'train':
        pretrained = (node for _, node in walk(cfg.model) if node.get('type') == 'Pretrained')
        checkpoints += [('init_cfg', node.get('checkpoint')) for node in pretrained]
    for key, checkpoint in checkpoints:
        path = checkpoint and local_path(checkpoint)
        if path and not path.exists():
            where = '' if key == 'load_from' else f' ({key})'
            raise LaunchError(f'checkpoint not found: {path}{where}. Give an existing file')


def check_data(cfg: Config, phase: str) -> None:
    """Refuse a config whose annotation files or image folders do not exist.

    Args:
        cfg: The complete config.
        phase: A key of :data:`PHASES`.

    Raises:
        LaunchError: Names all of them, and how to get the data.
    """
    paths = []
    for split in PHASES[phase]:
        loader = cfg.get(f'{split}_dataloader') or {}
        paths += _data_paths(loader.get('dataset') or {})
        for _, evaluator in walk(cfg.get(f'{split}_evaluator')):
            if _is_on_disk(evaluator):
                paths.append(evaluator.get('ann_file'))
    local = [local_path(path) for path in paths if path]
    missing = [str(path) for path in dict.fromkeys(local) if path and not path.exists()]
    if missing:
        source = cfg.get('data_source', 'set the data_root of each dataloader to where it is')
        raise LaunchError(
            'data not found:\n  '
            + '\n  '.join(missing)
            + f'\nlooked for from {Path.cwd()}.\nHow to get it: {source}'
        )


def check_work_dir(work_dir: Path) -> None:
    """Make the work dir, and refuse one that cannot be written to.

    Raises:
        LaunchError: Names it and the reason.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise LaunchError(f'cannot write to the work dir {work_dir}: {error}') from error


def _data_paths(dataset: dict) -> Iterator[str]:
    """The annotation files and image folders that a dataset, wrapped or not, will open."""
    for _, node in walk(dataset):
        root = node.get('data_root') or ''
        annotations = node.get('ann_file')
        parts = [
            *(annotations if isinstance(annotations, (list, tuple)) else [annotations]),
            *(node.get('data_prefix') or {}).values(),
        ]
        if _is_on_disk(node) and 'pipeline' in node:
            yield root
            yield from (os.path.join(root, part) for part in parts if part)


def _is_on_disk(node: dict) -> bool:
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend in ('local', 'disk', 'hard_disk')


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is probably a misspelling of."""
    matches = get_close_matches(name, list(map(str, known)), n=1, cutoff=0.75)
    return matches[0] if matches else None
