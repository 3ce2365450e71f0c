"""The numbers of the runs of a work dir: what mmengine logged, joined, and the last metrics."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..utils.errors import LaunchError, join
from ..utils.files import replace_file

SCALARS = 'vis_data/scalars.json'  # what mmengine's LocalVisBackend writes, in each run's folder
LARGEST = 1e100
# What is logged beside losses, learning rates and metrics.
NOT_DRAWN = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'eta'}


class Points(NamedTuple):
    """A curve: values by iteration."""

    iterations: list[int]
    values: list[float]


class Entry(NamedTuple):
    """One line of the log.

    Attributes:
        iteration: The iteration it is about.
        is_training: Whether it is about training; otherwise about an evaluation.
        values: Numbers by name.
    """

    iteration: int
    is_training: bool
    values: dict[str, float]


class Run(NamedTuple):
    """What a training logged, with all that it was resumed by.

    Attributes:
        name: What a legend calls it.
        training: Curves of losses, learning rates and the like.
        validation: Curves of metrics.
    """

    name: str
    training: dict[str, Points]
    validation: dict[str, Points]


def read_run(path: Path, name: str | None = None) -> Run:
    """Read what the runs in a work dir logged.

    A run that was resumed goes on where it was: what an interrupted run logged beyond its last
    checkpoint is replaced by what the next one logged.

    Args:
        path: A work dir, the folder of one of its runs, or a ``scalars.json``.
        name: See :class:`Run`; by default that of the folder.
    """
    entries = _joined(_records(log_files(path)))
    curves = {}
    for is_training in (True, False):
        points = defaultdict(lambda: Points([], []))
        for entry in entries:
            if entry.is_training is is_training:
                for key, value in entry.values.items():
                    points[key].iterations.append(entry.iteration)
                    points[key].values.append(value)
        curves[is_training] = dict(points)
    return Run(name or path.resolve().name, curves[True], curves[False])


def read_runs(paths: list[Path]) -> list[Run]:
    """Read several runs, named by as many parts of their paths as tell them apart.

    Raises:
        LaunchError: One of them is not there, or logged nothing.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise LaunchError(f'run not found: {join(missing)}. Give the work dirs of trainings')
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    runs = [read_run(path, '/'.join(part[-length:])) for path, part in zip(paths, parts)]
    for path, run in zip(paths, runs):
        if not run.training and not run.validation:
            raise LaunchError(
                f'{path} holds no scalars: give the work dir of a training, with {SCALARS} in the '
                "folder of a run. Without dict(type='LocalVisBackend') among the visualizer's "
                'vis_backends nothing is written there'
            )
    return runs


def log_files(path: Path) -> list[Path]:
    """The files of scalars in a work dir, oldest run first."""
    if path.is_file():
        return [path]
    return sorted([*path.glob(SCALARS), *path.glob(f'*/{SCALARS}')])


def _records(files: list[Path]) -> Iterator[dict]:
    """The lines of the files; the last one of a run that was killed may be half a line."""
    for file in filter(Path.is_file, files):  # a pipe would never end
        for line in file.read_text(errors='replace').splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            step = record.get('step') if isinstance(record, dict) else None
            if _is_number(step) and step == step:
                yield record


def _joined(records: Iterator[dict]) -> list[Entry]:
    entries: list[Entry] = []  # sorted by iteration
    last = 0
    for record in records:
        # Evaluations are logged by epoch or by iteration, and do not say which: they belong to
        # the last iteration before them.
        is_training, iteration = 'iter' in record, record['step']
        if not is_training:
            iteration = max(iteration, last)
            at_once = entries and entries[-1].iteration == iteration
            if at_once and not entries[-1].is_training:
                entries.pop()  # made up for after a kill
        elif iteration <= last:
            del entries[bisect_left(entries, iteration, key=attrgetter('iteration')) :]
        if is_training:
            last = iteration
        values = {
            _without_phase(key): value
            for key, value in record.items()
            if _is_number(value) and _without_phase(key) not in NOT_DRAWN
        }
        entries.append(Entry(iteration, is_training, values))
    return entries


def _is_number(value: object) -> bool:
    """Whether it can be drawn: NaN leaves a gap, and a diagram has no room for 1e100."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and not abs(value) > LARGEST


def _without_phase(key: str) -> str:
    """A name without what ``log_processor.log_with_hierarchy`` puts before it."""
    return key.removeprefix('train/').removeprefix('val/')


def write_metrics(cfg: Config, phase: str, metrics: dict) -> None:
    """Write metrics to ``{phase}_metrics.json`` in the work dir, whole or not at all."""
    if not is_main_process():
        return
    path = Path(cfg.work_dir) / f'{phase}_metrics.json'
    values = {
        key: value.tolist() if hasattr(value, 'tolist') else value for key, value in metrics.items()
    }
    replace_file(path, json.dumps(values, indent=2, default=str) + '\n')
