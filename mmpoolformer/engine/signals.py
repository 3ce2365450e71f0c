"""What SIGTERM does to a run and to the workers that load its data."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch


class Terminated(Exception):
    """SIGTERM came; the run was saved and can be resumed."""


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a block, such as the writing of a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    previous = signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        signal.raise_signal(signal.SIGINT)


class WorkerSignals:
    """Initialise a data-loading worker so that the first SIGTERM does not end it.

    Whoever ends a job signals its whole process group, and training needs its workers until
    it has saved, however long its iteration takes. The second signal ends a worker, as does the
    end of the process that it works for, which PyTorch watches; and so does the first when the
    run is over: then it is ``multiprocessing`` that ends what is left at exit.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None):
        self.worker_init_fn = worker_init_fn
        # Shared with the workers however they are started, and without a lock.
        self.run_is_over = torch.zeros(1, dtype=torch.uint8).share_memory_()
        atexit.register(self._end_run)  # before multiprocessing's own, as it is later

    def _end_run(self) -> None:
        self.run_is_over.fill_(1)
        # PyTorch would raise for a worker that multiprocessing ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGTERM, self._outlive)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)

    def _outlive(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.run_is_over.item():
            signal.raise_signal(signal.SIGTERM)
