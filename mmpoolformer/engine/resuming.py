"""Runs that survive being killed: exact resuming, a clean end on SIGTERM."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    barrier,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.runner import Runner

from ..archs import is_integer, is_number
from ..utils.errors import LaunchError, one_line
from .checkpointing import begin, read_pointer, write_pointer
from .resumed import check_random_state
from .resumed_schedule import ITERATIONS_PER_EPOCH
from .signals import Terminated


def random_state() -> dict:
    """The states of Python's, NumPy's and torch's generators, in types that load safely."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=[version, list(numbers), gauss],
        numpy=[kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def set_random_state(state: dict) -> None:
    """Restore what :func:`random_state` returned.

    Raises:
        LaunchError: It is none, or would read beyond the generators' numbers.
    """
    check_random_state(state)
    try:
        _set_random_state(state)
    except Exception as error:  # whatever the generators do not take
        raise LaunchError(f'its random_state is none: {one_line(error)}') from error


def _set_random_state(state: dict) -> None:
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state['numpy']
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if state.get('cuda') and torch.cuda.device_count() == len(state['cuda']):
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state['cuda']])


class ResumeHook(Hook):
    """Make a resumed run the run that was interrupted.

    - Checkpoints carry the states of every process's random generators, and validation leaves
      them alone.
    - A run that stopped in the middle of an epoch skips the batches it has seen.
    - An evaluation that was due when the run stopped is made up for.
    - SIGTERM, which slurm sends before it takes a machine away, saves and ends the run.

    With data loaded in the training process (``num_workers=0``) the resumed run has the
    numbers of an uninterrupted one; workers start their augmentation anew.
    """

    priority = 'LOWEST'
    # Several processes must agree to stop, which takes a message: not in every iteration.
    AGREE_EVERY = 10

    def __init__(self):
        self.resumed: dict | None = None
        self.before_validation: dict | None = None
        self.gathered: list[dict] | None = None  # for the next checkpoint
        self.terminated = False
        self.previous_handler = None
        self.validated: int | None = None  # the iteration after which it was done last
        self.leftover: Path | None = None  # what SIGTERM saved, until the next checkpoint

    def gather_random_states(self, runner: Runner) -> None:
        """Collect them for the next checkpoint, which the first process writes; all call it."""
        if get_world_size() > 1:
            self.gathered = all_gather_object(self.before_validation or random_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.before_validation is not None:  # the best checkpoint, after an evaluation
            self.validated = runner.iter
        checkpoint['random_state'] = self.before_validation or random_state()
        checkpoint['validated'] = self.validated
        if not hasattr(runner.train_loop, 'dataloader_iterator'):
            checkpoint[ITERATIONS_PER_EPOCH] = len(runner.train_loop.dataloader)
        checkpoint['early_stopping'] = {
            hook.monitor: [hook.wait_count, float(hook.best_score)]
            for hook in runner.hooks
            if isinstance(hook, EarlyStoppingHook)
        }
        if self.gathered is not None:
            checkpoint['random_states'], self.gathered = self.gathered, None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        states = checkpoint.get('random_states') or []
        own = len(states) == get_world_size()  # else it was saved by another number of processes
        self.resumed = dict(
            random_state=states[get_rank()] if own else checkpoint.get('random_state')
        )
        self.validated = checkpoint.get('validated')
        _resume_early_stopping(runner, checkpoint.get('early_stopping'))
        if checkpoint['meta'].get('interrupted') and is_integer(checkpoint['meta']['iter']):
            leftover = Path(runner.work_dir) / f'iter_{checkpoint["meta"]["iter"]}.pth'
            if leftover.resolve() == Path(str(runner._load_from)).resolve():
                self.leftover = leftover

    def before_train(self, runner: Runner) -> None:
        self.previous_handler = signal.signal(signal.SIGTERM, self._remember)
        if is_main_process():
            begin(Path(runner.work_dir), runner._load_from if runner._resume else None)
        if self.resumed is None:
            return
        loop = runner.train_loop
        if loop.iter >= loop.max_iters:
            runner.logger.warning(
                f'nothing is left to train: it stands at iteration {loop.iter} of {loop.max_iters}'
            )
        if _validation_is_due(runner) and self.validated != runner.iter:
            runner.logger.info('the evaluation that was due when the run stopped')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        if self.resumed is None:
            return
        loop, state = runner.train_loop, self.resumed['random_state']
        self.resumed = None
        if hasattr(loop, 'dataloader_iterator'):
            skip = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
            iterator = _ContinuedIterator(loop.dataloader_iterator, skip, state)
            loop.dataloader_iterator = iterator
            return
        seen = loop.iter - loop.epoch * len(loop.dataloader)
        if 0 < seen <= len(loop.dataloader):
            loop.dataloader = _ContinuedDataLoader(loop, seen, state)
        elif state is not None:
            set_random_state(state)

    def before_val_epoch(self, runner: Runner) -> None:
        self.before_validation = random_state()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        set_random_state(self.before_validation)
        self.before_validation = None
        self.validated = runner.iter
        self._stop_if_told(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._remove_leftover(runner)
        if get_world_size() == 1 or (runner.iter + 1) % self.AGREE_EVERY == 0:
            self._stop_if_told(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        signal.signal(signal.SIGTERM, self.previous_handler or signal.SIG_DFL)

    def _remove_leftover(self, runner: Runner) -> None:
        if self.leftover is None or not is_main_process():
            return
        newest = read_pointer(Path(runner.work_dir))
        if newest and Path(newest).name != self.leftover.name:
            self.leftover.unlink(missing_ok=True)
            self.leftover = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _stop_if_told(self, runner: Runner, iteration: int) -> None:
        # Gradients that are being accumulated are not saved: their last iteration is waited for.
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if iteration % counts == 0 and self._should_stop(runner):
            self._save_and_stop(runner, iteration)

    def _should_stop(self, runner: Runner) -> bool:
        if get_world_size() == 1:
            return self.terminated
        flag = torch.tensor(int(self.terminated), device=next(runner.model.parameters()).device)
        all_reduce(flag, 'max')
        return bool(flag)

    def _save_and_stop(self, runner: Runner, iteration: int) -> None:
        path = Path(runner.work_dir) / f'iter_{iteration}.pth'
        # One that was due anyway stays.
        meta = dict(epoch=runner.epoch, iter=iteration, interrupted=not path.exists())
        self.gather_random_states(runner)
        runner.save_checkpoint(runner.work_dir, path.name, meta=meta, by_epoch=False)
        if is_main_process():
            write_pointer(path.parent, str(path))
        barrier()
        self.after_train(runner)
        raise Terminated(
            f'stopped by SIGTERM after iteration {iteration}, saved as {path}: go on with --resume'
        )


def _resume_early_stopping(runner: Runner, states: Any) -> None:
    """Go on counting, each hook by its metric."""
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook) and isinstance(states, dict):
            state = states.get(hook.monitor, [0, hook.best_score])
            if not isinstance(state, list) or len(state) != 2 or not all(map(is_number, state)):
                raise LaunchError('its early_stopping is none')
            hook.wait_count, hook.best_score = int(state[0]), float(state[1])


def _validation_is_due(runner: Runner) -> bool:
    """Whether the run stopped after the iteration or epoch that an evaluation follows."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    if hasattr(loop, '_decide_current_val_interval'):  # by dynamic_intervals
        loop._decide_current_val_interval()
    by_epoch = not hasattr(loop, 'dataloader_iterator')
    if by_epoch and loop.iter != loop.epoch * len(loop.dataloader):
        return False
    done, last = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return done >= max(loop.val_begin, 1) and (done % loop.val_interval == 0 or done == last)


class _ContinuedIterator:
    """The endless iterator of an iteration-based loop, with the generators set after skipping."""

    def __init__(self, iterator: Iterator, skip: int, state: dict | None):
        self.iterator, self.skip, self.state = iterator, skip, state

    def skip_iter(self, count: int) -> None:
        self.iterator.skip_iter(count)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        if self.skip:
            self.skip -= 1
        elif self.state is not None:
            if hasattr(self.iterator, '_ensure_iterator'):
                self.iterator._ensure_iterator()  # which draws a number
            set_random_state(self.state)
            self.state = None
        return next(self.iterator)

    def __getattr__(self, name: str):
        return getattr(self.iterator, name)


class _ContinuedDataLoader:
    """A data loader whose first pass starts after the batches that were seen."""

    def __init__(self, loop, seen: int, state: dict | None):
        self.loop, self.dataloader, self.seen, self.state = loop, loop.dataloader, seen, state

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> Iterator:
        self.loop.dataloader = self.dataloader  # hooks may change it from here on
        iterator = iter(self.dataloader)
        for _ in range(self.seen):
            next(iterator)
        if self.state is not None:
            set_random_state(self.state)
        return iterator

    def __getattr__(self, name: str):
        return getattr(self.dataloader, name)
