"""Progress of long work, with and without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .errors import printable

SECONDS = 5  # between lines, where there is no terminal
LONGEST_TITLE = 40


class Bars(Progress):
    """rich's bars on stderr; where that is no terminal, a line for each task every few seconds.

    Args:
        more: Columns behind counts and times.
    """

    def __init__(self, *more: ProgressColumn):
        console = Console(stderr=True)
        columns = (
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(*columns, *times, *more, console=console, disable=not console.is_terminal)
        self._printed: dict[TaskID, tuple[float, str]] = {}

    def add_task(self, description: str, **options) -> TaskID:
        task = super().add_task(description, **options)
        self._printed[task] = time.monotonic(), ''
        return task

    def update(self, task_id: TaskID, **values) -> None:
        super().update(task_id, **values)
        self._print(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print(task_id)

    def stop(self) -> None:
        """End the bars; without a terminal, say how far each task came."""
        super().stop()
        for task in self.task_ids:
            self._print(task, at_once=True)

    def _print(self, task_id: TaskID, at_once: bool = False) -> None:
        last, line = self._printed[task_id]
        if not self.disable or not (at_once or time.monotonic() - last >= SECONDS):
            return
        task = self._tasks[task_id]
        new = f'{task.description}: {task.completed:.0f}' + (
            '' if task.total is None else f' of {task.total:.0f}'
        )
        if new != line:
            self._printed[task_id] = time.monotonic(), new
            print(new, file=sys.stderr, flush=True)


def track(items: Iterable, total: int, title: str) -> Iterator:
    """Pass items on and show on stderr how many there were.

    Args:
        items: What is worked on, lazily.
        total: How many are expected.
        title: What they are.
    """
    with Bars() as bars:
        title = printable(title)
        short = title if len(title) <= LONGEST_TITLE else f'…{title[1 - LONGEST_TITLE :]}'
        task = bars.add_task(short, total=total)
        for item in items:
            yield item
            bars.advance(task)
