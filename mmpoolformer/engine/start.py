"""Where a training starts: anew, or at a checkpoint that it resumes from."""

from __future__ import annotations

import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from ..checkpoints import local_path
from ..utils.errors import LaunchError, join
from .checkpointing import (
    POINTER,
    STARTED,
    checkpoints_by_iteration,
    newest_intact_checkpoint,
    read_pointer,
)
from .distributed import is_first
from .resumed import check_meta, warn_of_lost_state

AUTO = 'auto'  # the newest checkpoint in the work dir


def find_start(cfg: Config, resume: str | None) -> str | None:
    """The checkpoint that a run resumes from.

    The config stays one that begins anew, and its copy in the work dir with it.

    Args:
        cfg: The complete config. The seed of the run that goes on is put into it.
        resume: A path, :data:`AUTO`, or ``None``: then the config's ``resume`` counts.

    Returns:
        A path or URL, or None for a run that begins anew.

    Raises:
        LaunchError: There are checkpoints, but none that can be read.
    """
    if resume is None and cfg.get('resume'):
        resume, cfg.load_from = cfg.get('load_from') or AUTO, None
    cfg.resume = False
    if resume == AUTO:
        resume = _newest(Path(cfg.work_dir))
        if resume is None and is_first(cfg.launcher):
            weights = cfg.get('load_from')
            begins = f'from the weights in {weights}' if weights else 'from the beginning'
            print(f'{cfg.work_dir} has no checkpoint to resume: it starts {begins}')
    if resume is not None:
        _keep_seed(cfg, resume)
        warn_of_lost_state(cfg)
    return resume


def _newest(work_dir: Path) -> str | None:
    """The newest checkpoint in the work dir that is intact."""
    named, earlier = read_pointer(work_dir), checkpoints_by_iteration(work_dir)
    if named is None and earlier and (work_dir / STARTED).exists():
        raise LaunchError(
            f'{work_dir}: a run that started anew here has no checkpoint yet, and '
            f'{earlier[0].name} is of an earlier one. To go on with that: --resume {earlier[0]}; '
            'to start anew: without --resume'
        )
    if named and '://' in named:  # stored remotely
        return named
    newest, broken = newest_intact_checkpoint(work_dir)
    for path in broken:
        print(f'warning: {path} is BROKEN, and passed over', file=sys.stderr)
    if newest is None and (broken or named is not None):
        raise LaunchError(
            f'no checkpoint in {work_dir} can be read: its {POINTER} names '
            f'{named or ""!a}; broken: {join(broken) or "none"}. Remove them to start anew'
        )
    if newest is not None and newest.parent.resolve() != work_dir.resolve():
        print(f'warning: {newest} is not in the work dir {work_dir}', file=sys.stderr)
    return newest and str(newest)


def _keep_seed(cfg: Config, checkpoint: str) -> None:
    """Draw the order of the data with the seed of the run that goes on."""
    path = local_path(checkpoint)
    if path and path.is_file():
        # mmengine would restore it after the order of the data has been drawn.
        meta = CheckpointLoader.load_checkpoint(str(path), map_location='cpu').get('meta')
        cfg.setdefault('randomness', dict(seed=None))
        if cfg.randomness.get('seed') is None and meta is not None:
            try:
                check_meta(meta)
            except LaunchError as error:
                raise LaunchError(f'{path} cannot be resumed: {error}') from error
            cfg.randomness.seed = meta.get('seed')
