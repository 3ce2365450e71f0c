"""How the schedule of a resumed run goes on: from where the file stands, as the config says."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from mmengine.optim import OneCycleParamScheduler, _ParamScheduler
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.runner import BaseLoop, Runner

from ..archs import is_integer
from ..utils.errors import LaunchError, join, short, some

LARGEST_COUNT = 2**53  # iterations
FROM_WEIGHTS = 'To start from its weights alone: --cfg-options load_from=FILE, without --resume'
# Where a scheduler stands, in mmengine's; the rest is the config's.
POSITION = frozenset((
    'last_step', '_global_step', '_last_value', 'best', 'num_bad_epochs', 'cooldown_counter',
))  # fmt: skip
# Of schedulers whose values follow from the number of steps.
STEPS = (_ParamScheduler.step, MomentumSchedulerMixin.step)
ITERATIONS_PER_EPOCH = 'iterations_per_epoch'  # in checkpoints of epoch-based loops


class Change(NamedTuple):
    """What a scheduler of the config has otherwise than that of the checkpoint.

    Attributes:
        key: Its attribute.
        said: What is said of it.
    """

    key: str
    said: str


def check_schedulers(found: Any, runner: Runner) -> list[Change]:
    """Leave of the schedulers in a checkpoint where they stand; what they do is the config's.

    Args:
        found: What was read; it is changed in place.
        runner: The run that resumes, with its schedulers built.

    Returns:
        What the config has otherwise, for :func:`follow`.

    Raises:
        LaunchError: It is none, not as many as the config has, or counts otherwise.
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
    if not all(map(_can_replay, _flat(runner.param_schedulers))) and not _are_ends(changed):
        raise LaunchError(
            f'the config has another schedule than it: {_said(changed)}. One that follows a '
            'metric, or of one cycle, cannot be computed anew: give the config that which it had. '
            f'{FROM_WEIGHTS}'
        )
    return changed


def _flat(schedulers: dict | list | None) -> list:
    """Those of one optimizer, or of several by their names."""
    if isinstance(schedulers, dict):
        return [one for each in schedulers.values() for one in each]
    return schedulers or []


def _are_ends(changed: list[Change]) -> bool:
    return all(change.key == 'end' for change in changed)


def _said(changed: list[Change]) -> str:
    return '; '.join(change.said for change in changed)


def _take_position(state: dict, scheduler: _ParamScheduler) -> list[Change]:
    """Check where a scheduler stands, take the rest from the config; say what differs."""
    known, kind = scheduler.state_dict(), type(scheduler).__name__
    if state.get('by_epoch') != known.get('by_epoch'):
        units = ('epochs', 'iterations') if known.get('by_epoch') else ('iterations', 'epochs')
        raise LaunchError(
            f'its scheduler does not count {units[0]} as {kind} of the config does. {FROM_WEIGHTS}'
        )
    changed = []
    if set(known) != set(state):
        changed.append(Change('', f'{kind} in the place of another kind'))
    for key in list(state):
        if key not in known:
            del state[key]
        elif key not in POSITION:
            if not _is_same(state[key], known[key]):
                said = f'{key} of {kind}: {_shown(state[key])} → {_shown(known[key])}'
                changed.append(Change(key, said))
            state[key] = known[key]
        elif not _is_alike(state[key], known[key]):
            raise LaunchError(f'its scheduler has {key}={short(state[key])}')
        elif isinstance(known[key], float) and state[key] is not None:
            state[key] = float(state[key])
    state.update({key: known[key] for key in known if key not in state})
    return changed


def _is_same(value: Any, own: Any) -> bool:
    """Whether an argument of a scheduler is that of the config; functions follow from others."""
    if isinstance(own, dict):
        return isinstance(value, dict) and dict(value) == dict(own)
    if isinstance(own, (list, tuple)):
        are_lists = isinstance(value, (list, tuple)) and len(value) == len(own)
        return are_lists and all(map(_is_same, value, own))
    if isinstance(own, (int, float)) and _is_count(value):
        return math.isclose(value, own, rel_tol=1e-6)
    if callable(own):
        return getattr(value, '__name__', own.__name__) == own.__name__
    return value == own


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return some(map(short, value))
    return short(value)


def _can_replay(scheduler: Any) -> bool:
    """Whether its values follow from its arguments: not by a metric, and not those of OneCycle,
    which writes its own beginning into the optimizer.
    """
    return type(scheduler).step in STEPS and not isinstance(scheduler, OneCycleParamScheduler)


def follow(runner: Runner, changed: list[Change]) -> None:
    """Bring the values that schedulers set to where the config would have them by now.

    mmengine's schedulers change the value that is there. With other arguments, and behind an end
    that is later now, that value is none of theirs.

    Args:
        runner: A run whose optimizer and schedulers were resumed.
        changed: What :func:`check_schedulers` returned.
    """
    schedulers = _flat(runner.param_schedulers)
    before = _rates(schedulers)
    if _are_ends(changed):
        _catch_up(schedulers)
    else:
        _replay(schedulers, runner.train_loop)
    runner.logger.warning(
        f'the config has another schedule than the checkpoint: {_said(changed)}. From here on '
        f"it is the config's, as if from the beginning: {before} → {_rates(schedulers)}"
    )


def _catch_up(schedulers: list) -> None:
    """Make the step that a scheduler whose end came, and is later now, has not made.

    mmengine ends each with the training, before the step that a longer one would make there.
    """
    for scheduler in schedulers:
        if type(scheduler).step not in STEPS:  # made by a metric
            continue
        now = scheduler._global_step
        due = min(now, scheduler.end - 1) - scheduler.begin
        if now < scheduler.end and scheduler.last_step < due:
            scheduler.last_step, scheduler._global_step = due - 1, now - 1
            scheduler.step()


def _replay(schedulers: list, loop: BaseLoop) -> None:
    """Start anew, and make all steps up to here."""
    places = [scheduler._global_step for scheduler in schedulers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the optimizer made no step before
        for scheduler in schedulers:
            for group in scheduler.optimizer.param_groups:
                group[scheduler.param_name] = group[f'initial_{scheduler.param_name}']
        for scheduler in schedulers:
            scheduler._global_step = scheduler.last_step = -1
            scheduler.step()
        _step(list(zip(schedulers, places)), loop)


def _step(places: list[tuple[_ParamScheduler, int]], loop: BaseLoop) -> None:
    """Step each scheduler up to its place, in the order of a training."""
    by_iteration = [pair for pair in places if not pair[0].by_epoch]
    by_epoch = [pair for pair in places if pair[0].by_epoch]
    has_epochs = not hasattr(loop, 'dataloader_iterator')
    length = len(loop.dataloader) if has_epochs else LARGEST_COUNT
    for iteration in range(1, max((place for _, place in by_iteration), default=0) + 1):
        for scheduler, place in [*by_iteration, *(by_epoch if iteration % length == 0 else ())]:
            if scheduler._global_step < place:
                scheduler.step()
    for scheduler, place in by_epoch:
        while scheduler._global_step < place:
            scheduler.step()


def _rates(schedulers: list) -> str:
    names = dict.fromkeys(scheduler.param_name for scheduler in schedulers)
    groups = schedulers[0].optimizer.param_groups
    return join(f'{name} {groups[0][name]:.4g}' for name in names)


def _is_alike(value: Any, own: Any) -> bool:
    if own is None or isinstance(own, (int, float)):
        return value is None or _is_count(value)
    return isinstance(value, (list, tuple)) and all(map(_is_count, value))


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
    schedulers = _flat(runner.param_schedulers)
    in_iterations = [one for one in schedulers if not getattr(one, 'by_epoch', True)]
    if any(scheduler.end > min(iteration, epoch * own) for scheduler in in_iterations):
        raise LaunchError(f'{counts}, and param_scheduler counts in them to the end. {remedy}')
    runner.logger.warning(f'{counts}: from epoch {epoch} on they are counted anew')
    meta['iter'] = epoch * own
    if checkpoint.get('validated') == iteration:
        checkpoint['validated'] = epoch * own
