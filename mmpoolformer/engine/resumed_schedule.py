"""How the schedule of a resumed run goes on: from where the file stands, as the config says."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner

from ..archs import is_integer
from ..utils.config_tree import walk
from ..utils.errors import LaunchError, join, short

LARGEST_COUNT = 2**53  # iterations
FROM_WEIGHTS = 'To start from its weights alone: --cfg-options load_from=FILE, without --resume'
# What mmengine's schedulers make of their arguments.
DERIVED = frozenset((
    'total_iters', 'total_steps', 'cumulative_periods', 'base_values', 'min_values', 'rule_worse',
    'anneal_func', '_schedule_phases', 'use_betas',
))  # fmt: skip
# Of which a change is said.
SAID = ('begin', 'end', 'milestones', 'T_max', 'gamma', 'step_size', 'power', 'eta_min', 'factor')
ITERATIONS_PER_EPOCH = 'iterations_per_epoch'  # in checkpoints of epoch-based loops


def check_schedulers(found: Any, runner: Runner) -> None:
    """Leave of the schedulers in a checkpoint where they stand; what they do is the config's.

    Args:
        found: What was read; it is changed in place.
        runner: The run that resumes, with its schedulers built.

    Raises:
        LaunchError: It is none, or not as many as the config has.
    """
    own = runner.param_schedulers
    own = own if isinstance(own, dict) else {'': own}
    found = found if isinstance(found, dict) else {'': found}
    changed = []
    for name, schedulers in own.items():
        states = found.get(name)
        if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
            raise LaunchError('its param_schedulers are none')
        if len(states) != len(schedulers):
            raise LaunchError(
                f'it has {len(states)} param_scheduler, the config {len(schedulers)}: which goes '
                f'on from which cannot be told. {FROM_WEIGHTS}'
            )
        for state, scheduler in zip(states, schedulers):
            changed += _take_position(state, scheduler)
    if changed:
        runner.logger.warning(
            f'the config has another schedule than the checkpoint: {"; ".join(changed)}. From here '
            "on it is the config's, and goes on from the values that the checkpoint has"
        )


def _take_position(state: dict, scheduler: Any) -> list[str]:
    """Check where a scheduler stands, take the rest from the config; say what differs."""
    known, changed = scheduler.state_dict(), []
    constants = _arguments(type(scheduler)) | DERIVED
    for key in list(state):
        if key not in known:
            del state[key]
        elif key in constants:
            if key in SAID:
                changed += _changes(key, state[key], known[key])
            state[key] = known[key]
        elif _is_fixed(known[key]):
            state[key] = known[key]
        elif not _is_alike(state[key], known[key]):
            raise LaunchError(f'its scheduler has {key}={short(state[key])}')
        elif isinstance(known[key], float) and state[key] is not None:
            state[key] = float(state[key])
    return changed


def catch_up(schedulers: list | dict | None) -> None:
    """Make the step that a scheduler whose end came, and is later now, has not made.

    mmengine ends each with the training, before the step that a longer one would make there.
    """
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers or ()]
    for scheduler in (scheduler for each in lists for scheduler in each):
        if type(scheduler).step is not _ParamScheduler.step:  # made by a metric
            continue
        now = scheduler._global_step
        due = min(now, scheduler.end - 1) - scheduler.begin
        if now < scheduler.end and scheduler.last_step < due:
            scheduler.last_step, scheduler._global_step = due - 1, now - 1
            scheduler.step()


def _arguments(kind: type) -> set[str]:
    """What a scheduler's class and those that it comes from are built with."""
    inits = (vars(cls)['__init__'] for cls in kind.__mro__[:-1] if '__init__' in vars(cls))
    return {name for init in inits for name in inspect.signature(init).parameters} - {'last_step'}


def _changes(key: str, value: Any, own: Any) -> list[str]:
    if isinstance(own, dict):  # a Counter of milestones
        value = sorted(filter(_is_count, value)) if isinstance(value, dict) else value
        own = sorted(own)
        return [f'{key} {join(value[:9])} → {join(own)}'] if value != own else []
    return [f'{key} {short(value)} → {short(own)}'] if value != own else []


def _is_fixed(own: Any) -> bool:
    """Names, switches and functions, which do not change in a run."""
    if isinstance(own, (list, tuple)):
        return not all(map(_is_count, own))
    return isinstance(own, (str, bool)) or callable(own)


def _is_alike(value: Any, own: Any) -> bool:
    if own is None or isinstance(own, (int, float)):
        return value is None or _is_count(value)
    if isinstance(own, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(map(_is_count, value))
    return isinstance(value, type(own)) and not isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_COUNT


def check_progress(checkpoint: dict, runner: Runner) -> None:
    """See that the run is not beyond its end, and count its iterations as this run's epochs have.

    Beyond its end it would end at once, untrained and without a word. With other batches or
    another number of processes an epoch has other iterations.

    Raises:
        LaunchError: It is, or it cannot be counted so.
    """
    meta, loop = checkpoint['meta'], runner.train_loop
    by_epoch = not hasattr(loop, 'dataloader_iterator')
    key = 'epoch' if by_epoch else 'iter'
    last = getattr(loop, f'max_{key}s')
    if meta[key] > last:
        raise LaunchError(
            f'its meta.{key} is {meta[key]}, and the config trains up to {last}. To train on, set '
            f'train_cfg.max_{key}s higher, and the end and the milestones of param_scheduler with '
            f'it. {FROM_WEIGHTS}'
        )
    if by_epoch:
        _count_anew(checkpoint, len(loop.dataloader), runner)


def _count_anew(checkpoint: dict, own: int, runner: Runner) -> None:
    meta = checkpoint['meta']
    epoch, iteration = meta['epoch'], meta['iter']
    theirs = checkpoint.get(ITERATIONS_PER_EPOCH)
    if not is_integer(theirs) or theirs < 1:  # of mmengine's own, or older
        at_an_end = epoch and iteration % epoch == 0 and not meta.get('interrupted')
        theirs = iteration // epoch if at_an_end else own
    is_between = iteration != epoch * theirs
    if theirs == own and (not is_between or 0 < iteration - epoch * own <= own):
        return
    counts = f'its epochs have {theirs} iterations, those of the config {own}'
    remedy = f'Train with the batch size and the number of processes that it had. {FROM_WEIGHTS}'
    if is_between:
        raise LaunchError(
            f'{counts}, and it was saved at iteration {iteration}, in the middle of epoch '
            f'{epoch + 1}. {remedy}'
        )
    schedulers = runner.cfg.get('param_scheduler')
    if any(node.get('convert_to_iter_based') for _, node in walk(schedulers)):
        raise LaunchError(
            f'{counts}, and param_scheduler counts in them (convert_to_iter_based). {remedy}'
        )
    runner.logger.warning(f'{counts}: from epoch {epoch} on they are counted anew')
    meta['iter'] = epoch * own
    if checkpoint.get('validated') == iteration:
        checkpoint['validated'] = epoch * own
