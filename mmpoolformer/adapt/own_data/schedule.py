"""How long to train on own data, and with which learning rate."""

from __future__ import annotations

import math
import re
from pathlib import Path

from mmengine.config import Config

from ...archs import is_integer
from ...utils.config_tree import type_of, walk
from ..edit import Edit
from ..schedules import images_per_step, scale_rates
from .errors import OwnDataError

LEAST_STEPS = 1000  # fewer leave even a pretrained detector at an AP near 0
EVALUATIONS = 12
CHECKPOINTS = 12
WARM_UPS = ('Linear', 'Constant', 'Quadratic')
COUNTING = WARM_UPS[:2]  # to one less than their length
# Where hooks of the toolboxes switch to another stage of the training, by epoch or by iteration.
SWITCHES = {
    True: ('switch_epoch', 'num_last_epochs', 'begin_epoch'),
    False: ('begin_iter',),
}


def set_batch_size(edit: Edit, batch_size: int | None, is_swapped: bool) -> None:
    """Scale the learning rate to the batch, as ``auto_scale_lr`` does it: linearly.

    Args:
        edit: The config that is changed.
        batch_size: Images per step and process; ``None`` keeps the config's.
        is_swapped: Another backbone brought its own learning rate.
    """
    loader = edit.cfg.train_dataloader
    if batch_size is not None:
        edit.set(('train_dataloader', 'batch_size'), batch_size, 'as you asked for')
    batch_size = images_per_step(edit, loader['batch_size'])
    scaling = dict(edit.cfg.get('auto_scale_lr') or dict(enable=False))
    named = None if is_swapped else _named_batch_size(edit.cfg)
    named = named and images_per_step(edit, named)
    base = named or scaling.get('base_batch_size')
    lr = edit.find(('optim_wrapper', 'optimizer')).get('lr')
    if not base or not lr or base == batch_size:
        return
    reason = f'{lr} is for batches of {base}; yours have {batch_size}, from one process'
    edit.set(('optim_wrapper', 'optimizer', 'lr'), float(f'{lr * batch_size / base:.3g}'), reason)
    scale_rates(edit, batch_size / base)
    reason = 'of several processes: train with --auto-scale-lr'
    edit.set(('auto_scale_lr',), dict(scaling, base_batch_size=batch_size), reason)


def _named_batch_size(cfg: Config) -> int | None:
    """Images per step that the config's name says, as in ``8xb32``.

    It goes before ``base_batch_size`` where that is inherited, as from another recipe.
    """
    path = Path(cfg.filename or '')
    named = re.search(r'_(\d+)xb(\d+)', path.stem)
    if named and path.is_file() and 'base_batch_size' in path.read_text(encoding='utf-8'):
        return None
    return int(named[1]) * int(named[2]) if named else None


def set_schedule(edit: Edit, images: int, epochs: int | None, repeated: int = 1) -> None:
    """Give small data sets enough steps, and none more than the config has.

    Args:
        edit: The config that is changed.
        images: Number of training images.
        epochs: Passes over them; ``None`` for the config's, but at least 1,000 steps.
        repeated: How often an epoch of the config sees an image.
    """
    reason = 'as you asked for' if epochs else f'a sensible length for {images} images'
    train_cfg = edit.cfg.get('train_cfg') or {}
    per_epoch = max(1, math.ceil(images / edit.cfg.train_dataloader['batch_size']))
    if 'max_iters' in train_cfg:
        old = train_cfg['max_iters']
        wanted = epochs * per_epoch if epochs else max(LEAST_STEPS, 40 * per_epoch)
        new = wanted if epochs else min(old, wanted)
        _set_length(edit, 'max_iters', old, new, reason, by_epoch=False)
    elif 'max_epochs' in train_cfg:
        old = train_cfg['max_epochs']
        new = epochs or max(old * repeated, math.ceil(LEAST_STEPS / per_epoch))
        _set_length(edit, 'max_epochs', old, new, reason, by_epoch=True)
        _shorten_warm_up(edit, new * per_epoch)
    _lengthen_warm_ups(edit)
    _drop_empty(edit)


def _set_length(edit: Edit, key: str, old: int, new: int, reason: str, by_epoch: bool) -> None:
    if new == old:
        return
    edit.set(('train_cfg', key), new, reason)
    edit.set(('train_cfg', 'val_interval'), max(1, new // EVALUATIONS), reason)
    if edit.cfg.train_cfg.get('dynamic_intervals'):
        edit.set(('train_cfg', 'dynamic_intervals'), None, reason)
    if edit.find(('default_hooks', 'checkpoint')):
        interval = max(1, new // CHECKPOINTS)
        edit.set(('default_hooks', 'checkpoint', 'interval'), interval, reason)
    ratio = new / old
    if edit.cfg.train_cfg.get('val_begin', 1) > 1:
        begin = max(1, round(edit.cfg.train_cfg.val_begin * ratio))
        edit.set(('train_cfg', 'val_begin'), begin, reason)
    for at, hook in list(walk(edit.cfg.get('custom_hooks') or [], ('custom_hooks',))):
        for name in SWITCHES[by_epoch]:
            if is_integer(hook.get(name)) and hook[name] > 0:
                edit.set((*at, name), max(1, round(hook[name] * ratio)), reason)
    schedulers = edit.cfg.get('param_scheduler') or []
    for at, scheduler in walk(schedulers, ('param_scheduler',)):
        if not type_of(scheduler).endswith(('LR', 'Momentum')):
            continue
        if bool(scheduler.get('by_epoch', True)) != by_epoch:
            continue
        for name in ('begin', 'end', 'T_max', 'total_steps', 'step_size'):
            if scheduler.get(name):
                edit.set((*at, name), max(1, round(scheduler[name] * ratio)), reason)
        for name in ('milestones', 'periods'):
            if scheduler.get(name):
                steps = [max(1, round(step * ratio)) for step in scheduler[name]]
                edit.set((*at, name), steps, reason)


def _shorten_warm_up(edit: Edit, steps: int) -> None:
    """A warm-up counted in steps takes at most a tenth of the training."""
    for at, scheduler in walk(edit.cfg.get('param_scheduler') or [], ('param_scheduler',)):
        end = scheduler.get('end')
        if scheduler.get('by_epoch', True) is not False:
            continue
        if not type_of(scheduler).startswith(WARM_UPS):
            raise OwnDataError(
                f'{".".join(map(str, at))}: a {type_of(scheduler)} counts iterations of a training '
                'that counts epochs. Give it by_epoch=True and convert_to_iter_based=True, and its '
                'begin and end in epochs'
            )
        if end and end > steps // 10:
            edit.set((*at, 'end'), max(1, steps // 10), f'a tenth of the {steps} steps')


def _lengthen_warm_ups(edit: Edit) -> None:
    """A warm-up of one step would never be left: mmengine counts to one less than its length."""
    schedulers = list(walk(edit.cfg.get('param_scheduler') or [], ('param_scheduler',)))
    for at, scheduler in schedulers:
        end, converted = scheduler.get('end'), scheduler.get('convert_to_iter_based')
        if not type_of(scheduler).startswith(COUNTING) or converted or scheduler.get('begin'):
            continue
        if end != 1 or scheduler.get('factor') == 1:
            continue
        reason = 'a warm-up of one step would never be left'
        for where, other in schedulers:
            if other.get('begin') == end and other.get('by_epoch') == scheduler.get('by_epoch'):
                edit.set((*where, 'begin'), end + 1, reason)
        edit.set((*at, 'end'), end + 1, reason)


def _drop_empty(edit: Edit) -> None:
    """Leave out the parts of a schedule for which a short training has no step left."""
    schedulers = edit.cfg.get('param_scheduler') or []
    if not isinstance(schedulers, (list, tuple)):
        return
    kept = [s for s in schedulers if s.get('end') is None or s.get('begin', 0) < s['end']]
    if len(kept) < len(schedulers):
        edit.set(('param_scheduler',), kept, 'the others have no step in a training so short')
