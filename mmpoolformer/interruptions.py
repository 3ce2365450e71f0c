"""Runs that survive being killed: whole checkpoints, exact resuming, a clean end on SIGTERM."""

from __future__ import annotations

import atexit
import os
import random
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .checks import name_errors

POINTER = 'last_checkpoint'  # mmengine's file with the path of the newest checkpoint
PARTIAL = '.partial'  # what a file is called until it is whole
CHECKPOINT_NAMES = re.compile(r'(epoch|iter)_(\d+)\.pth')


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Terminated(Exception):
    """SIGTERM came; the run was saved and can be resumed."""


def replace_file(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text)
    _to_disk(partial)
    partial.replace(path)


def _to_disk(path: Path) -> None:
    with path.open('rb') as file:
        os.fsync(file.fileno())


def is_intact(path: Path) -> bool:
    """Whether a checkpoint can be read to its end, by the checksums in it.

    The folders that sharded training writes are taken as they are.
    """
    if path.is_dir():
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest_intact_checkpoint(work_dir: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to resume from, and the newer ones that are broken."""
    broken = []
    for path in find_checkpoints(work_dir):
        if is_intact(path):
            return path, broken
        broken.append(path)
    return None, broken


def find_checkpoints(work_dir: Path) -> list[Path]:
    """The checkpoints to resume from, the best choice first: the pointer's, then by age."""
    found = [path for path in work_dir.glob('*.pth') if CHECKPOINT_NAMES.fullmatch(path.name)]
    number = {path: int(CHECKPOINT_NAMES.fullmatch(path.name)[2]) for path in found}
    found.sort(key=lambda path: (path.stat().st_mtime, number[path]), reverse=True)
    pointer = work_dir / POINTER
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        for path in (named, work_dir / named.name):  # the folder may have been moved
            if named.name and path.exists():
                return [path, *(other for other in found if other.name != path.name)]
    return found


class ResumableRunner(Runner):
    """mmengine's runner, whose checkpoints are whole or not there, and whose data name files."""

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        # Here, as some loops start the workers when they are built.
        dataloader = Runner.build_dataloader(*args, **kwargs)
        name_errors(dataloader.dataset)
        dataloader.worker_init_fn = WorkerSignals(dataloader.worker_init_fn)
        return dataloader

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, **kwargs) -> None:
        folder = Path(out_dir)
        if '://' in str(out_dir):  # remote storage replaces objects as a whole
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        partial = folder / f'{filename}{PARTIAL}'
        try:
            super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
            _to_disk(partial)
            partial.replace(folder / filename)
        except OSError as error:
            partial.unlink(missing_ok=True)
            left = [str(path) for path in find_checkpoints(Path(self.work_dir))[:1]]
            raise CheckpointWriteError(
                f'the checkpoint {folder / filename} could not be written: {error}. '
                f'Make room or give another --work-dir, and go on with --resume '
                f'{left[0] if left else "(there is no earlier checkpoint)"}'
            ) from error


class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook in a safe order: write, point to what was written, remove the old."""

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept[-self.max_keep_ckpts :])
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            replace_file(Path(runner.work_dir) / POINTER, self.last_ckpt)
            for old in outdated:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):  # of sharded training
                    self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Remove the best checkpoint so far when the better one is there, and not before."""
        backend, outdated = self.file_backend, []
        self.file_backend = _Deferring(backend, outdated)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        kept = [getattr(self, 'best_ckpt_path', None)]
        kept += (getattr(self, 'best_ckpt_path_dict', None) or {}).values()
        for path in outdated:
            if path not in kept and backend.exists(path):
                (backend.rmtree if backend.isdir(path) else backend.remove)(path)


class _Deferring:
    """A file backend that notes what to remove."""

    def __init__(self, backend, outdated: list):
        self._backend, self._outdated = backend, outdated

    def remove(self, path: str) -> None:
        self._outdated.append(path)

    rmtree = remove

    def __getattr__(self, name: str):
        return getattr(self._backend, name)


class WorkerSignals:
    """Initialise a data-loading worker so that the first SIGTERM does not end it.

    Whoever ends a job signals its whole process group, and training needs its workers until
    it has saved. The second signal ends a worker, as does a while without one, and so does the
    first when the run is over: then it is ``multiprocessing`` that ends what is left at exit.
    """

    GRACE = 120  # seconds

    def __init__(self, worker_init_fn: Callable[[int], None] | None):
        self.worker_init_fn = worker_init_fn
        # Shared with the workers however they are started, and without a lock.
        self.run_is_over = torch.zeros(1, dtype=torch.uint8).share_memory_()
        atexit.register(self.run_is_over.fill_, 1)  # before multiprocessing's own, as it is later

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGTERM, self._outlive)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)

    def _outlive(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.run_is_over.item():
            signal.raise_signal(signal.SIGTERM)
        signal.alarm(self.GRACE)


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
    """Restore what :func:`random_state` returned."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state['numpy']
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and torch.cuda.device_count() == len(state['cuda']):
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state['cuda']])


class ResumeHook(Hook):
    """Make a resumed run the run that was interrupted.

    - Checkpoints carry the state of the random generators, and validation leaves it alone.
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
        self.terminated = False
        self.previous_handler = None
        self.validated: int | None = None  # the iteration after which it was done last
        self.leftover: Path | None = None  # what SIGTERM saved, until the next checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.before_validation is not None:  # the best checkpoint, after an evaluation
            self.validated = runner.iter
        checkpoint['random_state'] = self.before_validation or random_state()
        checkpoint['validated'] = self.validated

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        self.resumed = dict(random_state=checkpoint.get('random_state'))
        self.validated = checkpoint.get('validated')
        if checkpoint['meta'].get('interrupted'):
            self.leftover = Path(runner.work_dir) / f'iter_{checkpoint["meta"]["iter"]}.pth'

    def before_train(self, runner: Runner) -> None:
        self.previous_handler = signal.signal(signal.SIGTERM, self._remember)
        if self.resumed is None:
            return
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
        pointer = Path(runner.work_dir) / POINTER
        if pointer.is_file() and Path(pointer.read_text()).name != self.leftover.name:
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
        meta = dict(epoch=runner.epoch, iter=iteration, interrupted=True)
        runner.save_checkpoint(runner.work_dir, path.name, meta=meta, by_epoch=False)
        if is_main_process():
            replace_file(path.with_name(POINTER), str(path))
        barrier()
        self.after_train(runner)
        raise Terminated(
            f'stopped by SIGTERM after iteration {iteration}, saved as {path}: go on with --resume'
        )


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
