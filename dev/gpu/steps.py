"""The steps of each command, run one by one, each with its own end; and what they found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from common import markdown

from mmpoolformer.ops import first_use, measured
from mmpoolformer.utils.errors import one_line

from . import backbone, ceilings, children, operations, speed_steps
from .rules import device_entry, is_wrong, write_table
from .scale import FULL, REDUCED, Scale

LONGEST = 480  # seconds of a step


class Run:
    """A command at work: its steps and the file of what they found.

    Args:
        command: ``correct``, ``tune`` or ``small``.
        out: Folder of the results of all commands.
        table: Where the table is written; ``None`` for the package's, on a GPU.
        packed: The folder of dependencies.
    """

    def __init__(self, command: str, out: Path, table: Path | None, packed: Path | None):
        self.command, self.out, self.packed = command, out, packed
        self.scale = FULL if torch.cuda.is_available() else REDUCED
        self.device = measured.device_name(torch.device(self.scale.device))
        self.table = table or (out / 'measured.json' if self.scale.is_reduced else measured.TABLE)
        self.path = out / 'results.jsonl'
        out.mkdir(parents=True, exist_ok=True)

    def steps(self) -> dict[str, Callable[[], Iterator[dict]]]:
        """The steps of the command, in their order."""
        steps = globals()[f'{self.command}_steps'](self.scale, self.packed, self.out)
        steps['table'] = self.write_table
        return steps

    def write(self, step: str, **record) -> None:
        line = json.dumps(dict(command=self.command, step=step, **record))
        print(line, flush=True)
        with self.path.open('a') as file:
            file.write(f'{line}\n')

    def run_step(self, name: str, step: Callable[[], Iterator[dict]]) -> None:
        """Do a step; what it raises is a record too."""
        start = time.monotonic()
        self.write_start(name)
        try:
            for record in step():
                self.write(name, **record)
        except Exception as error:  # whatever a compiler, a driver or a kernel raises
            traceback.print_exc()
            self.write(name, error=one_line(error))
        self.write(name, seconds=round(time.monotonic() - start, 1))

    def run_step_apart(self, name: str) -> None:
        """Do a step in a process of its own: a kernel that fails can end it, or never end."""
        command = [sys.executable, str(children.ENTRY), self.command, '--alone', '--steps', name]
        command += ['--out', str(self.out), '--table', str(self.table)]
        command += ['--packed', str(self.packed)] if self.packed else []
        self.write_start(name)  # what an earlier run found is of the past, even if it dies at once
        try:
            code = subprocess.run(command, timeout=LONGEST).returncode
        except subprocess.TimeoutExpired:
            self.write(name, error=f'took longer than {LONGEST} s')
        else:
            if code not in (0, 1):
                self.write(name, error=f'ended with code {code}')

    def write_start(self, name: str) -> None:
        self.write(name, started=time.strftime('%Y-%m-%d %H:%M:%S'), **self.where())

    def where(self) -> dict:
        """The device and the software."""
        import triton

        return dict(device=self.device, torch=torch.__version__, triton=triton.__version__)

    def latest(self) -> dict[tuple[str, str], list[dict]]:
        """What the last run of each step on this device found, by command and step."""
        found: dict[tuple[str, str], list[dict]] = {}
        is_here: dict[tuple[str, str], bool] = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for record in map(json.loads, lines):
            key = record.pop('command'), record.pop('step')
            if 'started' in record:
                is_here[key] = record['device'] == self.device
                if is_here[key]:
                    found[key] = []
            elif is_here.get(key):
                found[key].append(record)
        return found

    def write_table(self) -> Iterator[dict]:
        """Write what all commands measured into the table that the package reads."""
        records = [record for found in self.latest().values() for record in found]
        where = self.where()
        write_table(self.table, where.pop('device'), where, device_entry(records))
        measured.forget()
        known = measured.load(self.table)  # that it can be read
        for name in first_use.TRIALS:
            operation = known[self.device].operations.get(name, measured.Operation())
            cases = operation.time_ratios
            yield dict(
                decision=name, wrong=operation.is_wrong, error_ratio=operation.error_ratio,
                sanitizer=operation.sanitizer, cases=len(cases),
                faster=sum(map(measured.pays, cases.values())),
            )  # fmt: skip
        for direction, pixels in known[self.device].fused_pixels.items():
            yield dict(decision=f'fused blocks in {direction}', from_pixels=pixels)


def correct_steps(scale: Scale, packed: Path | None, out: Path) -> dict[str, Callable]:
    steps = {'ceilings': partial(ceilings.step, scale)}
    for setting in scale.settings:
        steps[f'operations-{setting.name}'] = partial(operations.compare, scale, setting)
    for setting in scale.settings:
        steps[f'backbone-{setting.name}'] = partial(backbone.compare, scale, setting)
    for variant in ('with_cp', 'frozen', 'compile', 'graph'):
        steps[f'variant-{variant}'] = partial(backbone.compare_variant, scale, variant)
    for name in first_use.TRIALS:
        steps[f'sanitizer-{name}'] = partial(children.sanitize, scale, packed, name)
    steps['fallback'] = partial(children.fall_back, scale, packed)
    return steps


def tune_steps(scale: Scale, packed: Path | None, out: Path) -> dict[str, Callable]:
    steps = {'ceilings': partial(ceilings.step, scale)}
    for setting in scale.settings:
        steps[f'operations-{setting.name}'] = partial(operations.time, scale, setting)
    # The benchmark stands on the choices of the table.
    steps['table'] = None
    for mode in speed_steps.SIZES:
        steps[f'benchmark-{mode}'] = partial(speed_steps.benchmark, scale, mode, out / 'reports')
    return steps


def small_steps(scale: Scale, packed: Path | None, out: Path) -> dict[str, Callable]:
    return {'sizes': partial(backbone.time_small, scale)}


def hidden_steps(scale: Scale) -> dict[str, Callable]:
    """What children do."""
    steps = {
        f'sanitized-{name}': partial(children.sanitized, scale, name) for name in first_use.TRIALS
    }
    return dict(steps, **{'without-compiler': partial(children.without_compiler, scale)})


def tables(found: dict[tuple[str, str], list[dict]]) -> list[str]:
    """A page of Markdown: a table for each step, in which rows of the same columns are together."""
    lines = []
    for (command, step), records in found.items():
        rows = [record for record in records if list(record) != ['seconds']]
        lines += [f'## {command}: {step}', ''] if rows else []
        for columns in dict.fromkeys(map(tuple, rows)):
            chosen = [record.values() for record in rows if tuple(record) == columns]
            lines += [*markdown(columns, ([_cell(v) for v in row] for row in chosen)), '']
    return lines


def _cell(value) -> str:
    if isinstance(value, float):
        return f'{value:.3g}'
    if isinstance(value, list):
        return ', '.join(map(_cell, value)) or '–'
    return '–' if value is None else str(value).replace('|', '¦')


def failures(found: dict[tuple[str, str], list[dict]], command: str) -> list[str]:
    """The steps of a command that failed, found kernels wrong, or did not come to their end."""
    return [
        step
        for (of, step), records in found.items()
        if of == command and (any(map(is_wrong, records)) or not has_ended(records))
    ]


def has_ended(records: list[dict]) -> bool:
    """Whether a step came to its end; its seconds are its last record."""
    return bool(records) and 'seconds' in records[-1]
