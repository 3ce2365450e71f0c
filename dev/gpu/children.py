"""Steps that another process does: under compute-sanitizer, or without a C compiler."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

from mmpoolformer.ops import backend
from mmpoolformer.utils.errors import first_line

from .backbone import compare_one
from .scale import SETTINGS, Scale

ENTRY = Path(__file__).resolve().parent.parent / 'gpu_acceptance.py'
FOUND = 9  # compute-sanitizer's exit code for what it finds
LONGEST = 450  # seconds, less than a step may take


def child(step: str, packed: Path | None, prefix: Sequence[str] = (), **environment: str) -> tuple:
    """Run a hidden step of the command in a process of its own.

    Args:
        step: Its name.
        packed: The folder of dependencies.
        prefix: What the command line begins with.
        environment: Variables that differ.

    Returns:
        The finished process and what the step found.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [*prefix, sys.executable, str(ENTRY), 'correct', '--alone', '--steps', step]
        command += ['--out', out, *(['--packed', str(packed)] if packed else [])]
        run = subprocess.run(
            command, env=dict(os.environ, **environment), capture_output=True, text=True,
            timeout=LONGEST,
        )  # fmt: skip
        path = Path(out) / 'results.jsonl'
        lines = path.read_text().splitlines() if path.exists() else []
    return run, [json.loads(line) for line in lines]


# compute-sanitizer ----------------------------------------------------------------------------


def sanitize(scale: Scale, packed: Path | None, name: str) -> Iterator[dict]:
    """Run a step of the backbone with the kernels of one operation under memcheck."""
    yield dict(operation=name, **_sanitize(scale, packed, name))


def _sanitize(scale: Scale, packed: Path | None, name: str) -> dict:
    tool = shutil.which('compute-sanitizer')
    if scale.is_reduced or tool is None:
        missing = 'needs CUDA' if scale.is_reduced else 'no compute-sanitizer on this machine'
        return dict(sanitizer='not run', cause=missing)
    prefix = [tool, '--tool', 'memcheck', '--error-exitcode', str(FOUND), '--print-limit', '5']
    # Tensors in allocations of their own: what lies beside one belongs to no other.
    run, records = child(
        f'sanitized-{name}', packed, prefix, PYTORCH_NO_CUDA_MEMORY_CACHING='1'
    )  # fmt: skip
    return verdict(name, run.returncode, run.stdout + run.stderr, records)


def verdict(name: str, exit_code: int, output: str, records: list[dict]) -> dict:
    """What compute-sanitizer's output says of an operation.

    Args:
        name: The operation.
        exit_code: Of the tool.
        output: Of the tool and what ran in it.
        records: What the step in it found.
    """
    summary = re.search(r'ERROR SUMMARY: (\d+) error', output)
    if (summary and int(summary[1])) or exit_code == FOUND:
        first = re.search(r'========= ((?!COMPUTE-SANITIZER).+)', output)
        return dict(sanitizer='hit', cause=first[1].strip() if first else 'see its output')
    if not summary or exit_code:
        lines = output.strip().splitlines() or ['no output']
        return dict(sanitizer='not run', cause=f'exit code {exit_code}: {first_line(lines[-1])}')
    if not any(name in record.get('kernels', ()) for record in records):
        return dict(sanitizer='not run', cause='its kernels did not run')
    return dict(sanitizer='clean', cause='')


def sanitized(scale: Scale, name: str) -> Iterator[dict]:
    """The step that is watched: every type, one small image."""
    for setting in scale.settings:
        for row in compare_one(scale, setting, scale.sanitized, 'eager', only=name):
            yield dict(watched=name, **row)


# No compiler ----------------------------------------------------------------------------------


def fall_back(scale: Scale, packed: Path | None) -> Iterator[dict]:
    """Where Triton finds no C compiler: one warning, and PyTorch's numbers."""
    with tempfile.TemporaryDirectory() as cache:
        environment = dict(CC='/none', TRITON_CACHE_DIR=cache, TRITON_INTERPRET='0')
        environment[backend.SWITCH] = '1'
        run, records = child('without-compiler', packed, **environment)
    for record in records:
        if 'warnings' in record or 'error' in record:
            yield {k: v for k, v in record.items() if k not in ('command', 'step')}
            return
    yield dict(error=f'exit code {run.returncode}: {first_line(run.stderr[-200:])}')


def without_compiler(scale: Scale) -> Iterator[dict]:
    """What a user sees there."""
    if scale.is_reduced:  # Triton without its interpreter finds no GPU here, which is as good
        backend.on_cuda = lambda x: True
    warnings: list[Any] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    (row,) = compare_one(scale, SETTINGS[0], scale.sanitized, 'eager')
    expected = [text for text in warnings if f'{backend.SWITCH}=0' in text]
    shown = dict(warnings=len(expected), first=first_line((expected or [''])[0]))
    row.pop('refused')  # as it must be
    if row['kernels'] or not expected:
        shown['error'] = 'kernels ran, or nothing was said'
    yield dict(row, **shown)
