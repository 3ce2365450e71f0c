"""What is timed against each other: each may fail, and on the CPU has a process of its own."""

import contextlib
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable

import timm
import torch
from common import in_turns
from torch import nn

from mmpoolformer.utils.errors import one_line

ASKED = dict(peak_mebibytes='peak_memory')


def measure(
    kind: Callable, case: dict, names: Iterable[str], rounds: int, asked: dict[str, str] = ASKED
) -> list[dict]:
    """Time every contender of a case in turns; one record each, of those that fail the cause.

    Args:
        kind: Makes a contender of a case and a name.
        case: What the records have in common; ``batch`` is among it.
        names: Of the contenders.
        rounds: Bursts of each.
        asked: Keys of a record, and the contenders' methods that know them.
    """
    found = {name: Attempt(kind, case, name) for name in names}
    times = in_turns({name: attempt.burst for name, attempt in found.items()}, rounds)
    records = []
    for name, attempt in found.items():
        facts = {key: attempt.ask(method) for key, method in asked.items()}
        attempt.close()
        records.append(dict(case, contender=name, **attempt.result(times[name], facts)))
    return records


class Attempt:
    """A contender that may fail, at first or later: the others go on."""

    def __init__(self, kind: Callable, case: dict, name: str):
        self.contender, self.error, self.batch = None, None, case['batch']
        self.contender = self._try(lambda: kind(case, name))

    def burst(self) -> list[float]:
        return self.ask('burst') or []

    def ask(self, method: str):
        return self.contender and self._try(getattr(self.contender, method))

    def close(self):
        if self.contender:
            self.contender.close()
            self.contender = None

    def result(self, values: list[float], facts: dict) -> dict:
        """What the report says of it."""
        if self.error:
            return dict(error=self.error)
        median = statistics.median(values)
        return dict(
            milliseconds=median,
            quartiles=statistics.quantiles(values, n=4)[::2],
            images_per_second=1e3 * self.batch / median,
            **facts,
        )

    def _try(self, step: Callable):
        try:
            return step()
        except ContenderError as error:
            self.error = str(error)
        except Exception as error:  # whatever a compiler or a device without memory raises
            self.error = one_line(error)
        # Outside of the handler, which keeps the frames with their tensors.
        self.close()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class ContenderError(Exception):
    """What made a contender fail in its process."""


class InProcess:
    """A contender in a child process, which waits while others have their turn."""

    def __init__(self, case: dict, name: str):
        context = multiprocessing.get_context('fork')
        self.pipe, pipe = context.Pipe()
        self.process = context.Process(target=self.serve, args=(case, name, pipe), daemon=True)
        self.process.start()
        pipe.close()
        self.answer()

    @staticmethod
    def make(case: dict, name: str):
        """Make the contender, in its process."""
        raise NotImplementedError

    def burst(self) -> list[float]:
        return self.call('burst')

    def peak_memory(self) -> float | None:
        return self.call('peak_memory')

    def call(self, method: str):
        with contextlib.suppress(OSError):  # gone while others had their turn: no answer
            self.pipe.send(method)
        return self.answer()

    def answer(self):
        try:
            error, value = self.pipe.recv()
        except (EOFError, OSError):  # killed, by the kernel if memory ran out
            raise ContenderError('its process ended without an answer') from None
        if error:
            raise ContenderError(error)
        return value

    def close(self):
        with contextlib.suppress(OSError):  # it may be gone
            self.pipe.send(None)
        self.process.join()

    @classmethod
    def serve(cls, case: dict, name: str, pipe):
        try:
            contender = cls.make(case, name)
            pipe.send((None, 'ready'))
            while (method := pipe.recv()) is not None:
                pipe.send((None, getattr(contender, method)()))
        except Exception as error:  # whatever a contender raises
            pipe.send((one_line(error), None))
        os._exit(0)  # not the parent's clean-up


def timm_features(name: str, **options) -> nn.Module:
    return timm.create_model(name, pretrained=False, features_only=True, **options)
