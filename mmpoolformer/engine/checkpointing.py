"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..adapt.edit import Edit
from ..adapt.schedules import scale_rates
from ..checkpoints import CheckpointError, local_path
from ..checkpoints.sources import read_checkpoint
from ..utils.errors import LaunchError, one_line
from ..utils.files import replace_file, replacing
from .console import quieten_console
from .hooks import name_errors
from .resumed_schedule import Change, follow
from .signals import WorkerSignals, interrupted_afterwards

POINTER = 'last_checkpoint'  # mmengine's file with the path of the newest checkpoint
# Until a run has a checkpoint of its own: where it started, if not anew. Those of an earlier run
# are not its own.
STARTED = '.started'
CHECKPOINT_NAMES = re.compile(r'(epoch|iter)_(\d+)\.pth')


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


def is_intact(path: Path) -> bool:
    """Whether a checkpoint can be read to its end, by the checksums in it.

    The folders that sharded training writes are taken as they are.
    """
    try:
        if path.is_dir():
            return True
        if not path.is_file():  # a pipe would never end
            return False
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()  # torch compresses nothing, and no records overlap
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
            size = sum(info.file_size for info in infos)
            once = len({info.filename for info in infos}) == len(infos)
            return stored and once and size <= path.stat().st_size and file.testzip() is None
    except Exception:  # whatever damaged bytes make zipfile raise
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
    """The checkpoints to resume from, best first: the pointer's, then by iteration.

    Not by age, which copies lose. None of an earlier run, which one that started anew has left.
    """
    pointer, started = read_pointer(work_dir), _text_of(work_dir / STARTED)
    if pointer is None and started is not None:
        return []
    found = checkpoints_by_iteration(work_dir)
    named = Path(pointer if pointer and pointer.isprintable() else '')  # it will be printed
    places = [work_dir / named.name, named]  # the folder may be a copy, or moved
    for path in places[::-1] if started == pointer else places:
        if named.name and _exists(path):
            return [path, *(other for other in found if other.name != path.name)]
    return found


def checkpoints_by_iteration(work_dir: Path) -> list[Path]:
    """All checkpoints in a work dir but the best, from the last on."""
    found = [path for path in work_dir.glob('*.pth') if CHECKPOINT_NAMES.fullmatch(path.name)]
    kinds = {CHECKPOINT_NAMES.fullmatch(path.name)[1] for path in found}
    return sorted(found, key=_number if len(kinds) < 2 else _iteration, reverse=True)


def read_pointer(work_dir: Path) -> str | None:
    """What mmengine's file names as the newest checkpoint; None without such a file."""
    return _text_of(work_dir / POINTER)


def _text_of(path: Path) -> str | None:
    try:
        if path.is_file():  # a device would never end
            return path.read_text(errors='replace').strip()
    except OSError:  # it may not be read
        pass
    return '' if os.path.lexists(path) else None


def write_pointer(work_dir: Path, checkpoint: str) -> None:
    """Name the newest checkpoint, in mmengine's file."""
    replace_file(work_dir / POINTER, checkpoint)
    (work_dir / STARTED).unlink(missing_ok=True)


def begin(work_dir: Path, checkpoint: str | None) -> None:
    """Let ``--resume`` know where a run started, before it has a checkpoint of its own.

    Args:
        work_dir: It may have checkpoints of an earlier run.
        checkpoint: What it was resumed from, if anything.
    """
    earlier = find_checkpoints(work_dir)
    if checkpoint is not None:
        path = local_path(checkpoint)
        start = str(path.absolute()) if path else checkpoint
        write_pointer(work_dir, start)
        if path is None or path.absolute().parent != work_dir.absolute():
            replace_file(work_dir / STARTED, start)
    elif earlier:
        print(
            f'warning: {work_dir} has checkpoints of an earlier run, such as {earlier[0].name}: '
            'this one starts anew, and replaces those of the same names. To go on with the '
            f'earlier run: --resume {earlier[0]}',
            file=sys.stderr,
        )
        replace_file(work_dir / STARTED, '')
        (work_dir / POINTER).unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(CHECKPOINT_NAMES.fullmatch(path.name)[2])


def _iteration(path: Path) -> int:
    """Where training stood; SIGTERM saves by iteration in the middle of an epoch."""
    if path.name.startswith('iter'):
        return _number(path)
    try:
        checkpoint = read_checkpoint(str(path))
        return int(checkpoint['meta']['iter'])
    except Exception:  # a broken one
        return -1


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or no name at all
        return False


def _first_rate(optim_wrapper: Any) -> float | None:
    optimizer = getattr(optim_wrapper, 'optimizer', None)
    return optimizer.param_groups[0]['lr'] if isinstance(optimizer, Optimizer) else None


class ResumableRunner(Runner):
    """mmengine's runner, whose checkpoints are whole or not there, and whose data name files."""

    changed_schedule: Sequence[Change] = ()  # what a resumed run has otherwise

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quieten_console(logger)  # before what it is about is logged
        return logger

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        # Here, as some loops start the workers when they are built.
        dataloader = Runner.build_dataloader(*args, **kwargs)
        name_errors(dataloader.dataset)
        dataloader.worker_init_fn = WorkerSignals(dataloader.worker_init_fn)
        return dataloader

    def scale_lr(self, optim_wrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale what schedules say of rates with the learning rate, which mmengine scales alone."""
        before = _first_rate(optim_wrapper)
        super().scale_lr(optim_wrapper, auto_scale_lr)
        after = _first_rate(optim_wrapper)
        if before and after != before:
            edit = Edit(Config(dict(param_scheduler=self.param_schedulers)))
            scale_rates(edit, after / before)
            self.param_schedulers = edit.cfg.param_scheduler
            for change in edit.changes:
                self.logger.info(str(change))

    def resume(self, filename: str, *args, **kwargs) -> None:
        try:
            super().resume(filename, *args, **kwargs)
            if self.changed_schedule:
                follow(self, self.changed_schedule)
        except (LaunchError, CheckpointError, MemoryError) as error:
            raise LaunchError(f'{filename} cannot be resumed: {error}') from error
        except Exception as error:  # whatever of another kind than expected makes mmengine raise
            raise LaunchError(
                f'{filename} cannot be resumed: {one_line(error)}. Is it a checkpoint of this '
                'config? To start from its weights alone: --cfg-options load_from=FILE, without '
                '--resume'
            ) from error

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, **kwargs) -> None:
        folder = Path(out_dir)
        if '://' in str(out_dir):  # remote storage replaces objects as a whole
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        try:
            with interrupted_afterwards(), replacing(folder / filename) as partial:
                super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
        except OSError as error:
            left = [str(path) for path in find_checkpoints(Path(self.work_dir))[:1]]
            raise CheckpointWriteError(
                f'the checkpoint {folder / filename} could not be written: {error}. '
                f'Make room or give another --work-dir, and go on with --resume '
                f'{left[0] if left else "(there is no earlier checkpoint)"}'
            ) from error


class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook in a safe order: write, point to what was written, remove the old.

    What it may remove is in its own folder, whatever a resumed checkpoint says.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if getattr(self, 'best_ckpt_path', None) is not None:
            self.best_ckpt_path = self._own_path(self.best_ckpt_path)
            self._forget_another_metric(runner)
        for key, path in (getattr(self, 'best_ckpt_path_dict', None) or {}).items():
            self.best_ckpt_path_dict[key] = self._own_path(path)

    def _forget_another_metric(self, runner: Runner) -> None:
        """The best value so far is no measure for another ``save_best``."""
        (key,) = self.key_indicators
        start = f'best_{key.replace("/", "_")}_'
        name = os.path.basename(self.best_ckpt_path or start)
        if key != 'auto' and not name.startswith(start):
            runner.logger.warning(
                f'the best checkpoint so far, {name}, is of another metric than save_best={key!r}: '
                'it stays, and the best is looked for anew'
            )
            self.best_ckpt_path = None
            for entry in ('best_ckpt', 'best_score'):
                runner.message_hub.runtime_info.pop(entry, None)

    def _own_path(self, path: object) -> str | None:
        """The best checkpoint by its name, as the folder may have been moved."""
        name = os.path.basename(str(path))
        if not name.startswith('best_') or not name.endswith('.pth'):
            return None
        return self.file_backend.join_path(self.out_dir, name)

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
        runner.call_hook('gather_random_states')
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
            write_pointer(Path(runner.work_dir), self.last_ckpt)
            for old in outdated:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):  # of sharded training
                    self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Remove the best checkpoint so far when the better one is there, and not before."""
        runner.call_hook('gather_random_states')
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
