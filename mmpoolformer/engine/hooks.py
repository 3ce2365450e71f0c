"""What a run watches: its weights are loaded, its loss is finite, its errors name images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim.scheduler.param_scheduler import (
    INF,
    ConstantParamScheduler,
    LinearParamScheduler,
)
from mmengine.runner import Runner
from torch import nn

from ..datasets.label_maps import IGNORED, LabelsFit
from ..utils.errors import DataError, LaunchError, join, one_line
from .resumed import check_resumed, check_same_model


class NamingPipeline:
    """A data pipeline whose errors name the image they are about."""

    def __init__(self, pipeline: Callable):
        self.pipeline = pipeline

    def __call__(self, info: dict):
        name = info.get('img_path', info.get('img_id', 'a sample'))
        try:
            return self.pipeline(info)
        except Exception as error:  # of whatever kind, the sample is to blame
            raise DataError(f'{name}: {one_line(error)}') from error

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
        if hasattr(dataset, 'reduce_zero_label'):
            _watch_label_maps(dataset)
        dataset.pipeline = NamingPipeline(dataset.pipeline)


def _watch_label_maps(dataset) -> None:
    """Look at each label map of mmseg behind the transform that loads it."""
    transforms = getattr(dataset.pipeline, 'transforms', None)
    classes = dataset.metainfo.get('classes')
    if transforms is None or not classes:
        return
    for position, transform in enumerate(transforms):
        if type(transform).__name__ == 'LoadAnnotations':
            fit = LabelsFit(len(classes), getattr(dataset, 'ignore_index', IGNORED))
            transforms.insert(position + 1, fit)
            return


class CheckLoadedWeights(Hook):
    """Stop where mmengine would go on: no tensor of the checkpoint fits, or one holds NaN."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if getattr(runner, '_resume', False):
            check_resumed(checkpoint, runner)
        weights = checkpoint.get('state_dict', checkpoint)
        if not isinstance(weights, dict):
            raise LaunchError(f'the checkpoint holds {type(weights).__name__}, not a state dict')
        own = {_bare(key): value for key, value in runner.model.state_dict().items()}
        fitting = {key: weights[key] for key in weights if _bare(key) in own}
        if not fitting:
            keys = ', '.join(map(str, list(weights)[:5]))
            raise LaunchError(f'no tensor of the checkpoint fits the model; its keys: {keys}, …')
        averaged = checkpoint.get('ema_state_dict')  # with EMAHook the one has the other's
        check_weights(fitting, own)
        check_weights(averaged if isinstance(averaged, dict) else {}, own)
        if getattr(runner, '_resume', False) and isinstance(runner, Runner):
            check_same_model(fitting, runner.model)


def check_weights(weights: dict, own: dict[str, torch.Tensor]) -> None:
    """Refuse what PyTorch would copy into a model whatever it is.

    Args:
        weights: Of a checkpoint.
        own: The tensors of the model.

    Raises:
        LaunchError: NaN or Inf, whole or complex numbers in the place of weights, or two tensors
            for one.
    """
    names = Counter(map(_bare, weights))
    twice = [key for key in weights if names[_bare(key)] > 1]
    if twice:
        raise LaunchError(f'the checkpoint holds {_bare(twice[0])} twice, as {join(twice)}')
    for key, value in weights.items():
        if not torch.is_tensor(value):
            continue
        if value.is_floating_point() and _is_bad(value):
            raise LaunchError(f'the checkpoint holds NaN or Inf in {key}')
        target = own.get(_bare(key))
        if target is not None and target.is_floating_point() and not value.is_floating_point():
            raise LaunchError(f'the checkpoint holds {value.dtype} in {key}: weights are floats')


def watch_outputs(model: nn.Module) -> None:
    """Stop where a part of a model puts out NaN: no box is left then, and of labels the first."""
    for name, module in model.named_modules():
        *_, parent, part = f'..{name}'.split('.')
        part = parent if part.isdigit() else part  # of a cascade
        if part in ('backbone', 'neck') or part.endswith('_head'):
            module.register_forward_hook(partial(_refuse_nan, name))


def _refuse_nan(name: str, module: nn.Module, inputs: tuple, outputs: Any) -> None:
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    for part in parts if isinstance(outputs, (dict, list, tuple)) else ():
        _refuse_nan(name, module, inputs, part)
    if torch.is_tensor(outputs) and outputs.isnan().any():
        raise LaunchError(f'{name} of the model puts out NaN: its weights are none to predict with')


class CheckWarmUp(Hook):
    """Stop before a training that would not leave its warm-up, and say what ends within it."""

    def before_train(self, runner: Runner) -> None:
        groups = runner.param_schedulers
        groups = groups.values() if isinstance(groups, dict) else [groups]
        for scheduler in (scheduler for group in groups for scheduler in group or ()):
            kinds = ConstantParamScheduler, LinearParamScheduler
            if not isinstance(scheduler, kinds) or scheduler.begin > 0:
                continue
            if getattr(scheduler, 'factor', None) == 1:
                continue
            kind, length = type(scheduler).__name__, scheduler.end - scheduler.begin
            if scheduler.total_iters < 1:
                raise LaunchError(
                    f'a {kind} from {scheduler.begin} to {scheduler.end} is never left: mmengine '
                    'counts to one less than its length. Give it an end of '
                    f'{scheduler.begin + 2} or more, or take it out of param_scheduler'
                )
            loop = runner.train_loop
            last = loop.max_epochs if scheduler.by_epoch else loop.max_iters
            if last <= length < INF:
                unit = 'epochs' if scheduler.by_epoch else 'iterations'
                runner.logger.warning(
                    f'the {kind} at the start of param_scheduler takes {length} {unit}, and the '
                    f'training has {last}: it never reaches its learning rate. Shorten its end'
                )


class KeepApart(Hook):
    """Stop before images of one name in several folders get one file for all.

    Args:
        option: What writes the files, for the message.
        name_of: What of a path they are named by.
    """

    def __init__(self, option: str, name_of: Callable[[str], str]):
        self.option, self.name_of = option, name_of

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        infos = (dataset.get_data_info(i) for i in range(len(dataset)))
        paths = [path for info in infos if isinstance(path := info.get('img_path'), str)]
        counts = Counter(map(self.name_of, paths))
        shared = [path for path in paths if counts[self.name_of(path)] > 1]
        if shared:
            raise LaunchError(
                f'{self.option}: {shared[0]} and others of the {len(paths)} images share their '
                'names, and one file would be written for several: tools/predict.py keeps them '
                'apart'
            )


def _bare(key: Any) -> Any:
    """The name under which mmengine loads a tensor; the dot in its pattern is any character."""
    return re.sub(r'^module.', '', key) if isinstance(key, str) else key


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
            'clip_grad=dict(max_norm=1) in the optim_wrapper, or with --amp the type bfloat16. '
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
