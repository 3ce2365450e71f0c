"""Run a command: its steps, its report and its exit code."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from mmpoolformer.ops import backend
from mmpoolformer.utils.files import replace_file

from .steps import Run, failures, hidden_steps, tables


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    work = Run(args.command, args.out, args.table, args.packed)
    steps = work.steps()
    if args.list:
        print('\n'.join(steps))
        return 0
    known = {**steps, **hidden_steps(work.scale)}
    names = args.steps or list(steps)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f'error: no steps {unknown}: {", ".join(steps)}', file=sys.stderr)
        return 2
    choose_kernels(args.command, names)
    for name in names:
        if args.alone or work.scale.is_reduced:
            work.run_step(name, known[name])
        else:
            work.run_step_apart(name)
    found = work.latest()
    failed = [step for step in failures(found, args.command) if step in names]
    if not args.alone or args.steps is None:
        lines = tables(found)
        print('\n'.join(lines))
        replace_file(args.out / 'report.md', '\n'.join(lines))
    print(f'failed: {", ".join(failed)}' if failed else 'passed', flush=True)
    return 1 if failed else 0


def choose_kernels(command: str, names: list[str]) -> None:
    """Every kernel where they are compared; as users have them where they are timed."""
    compares = command == 'correct' and names != ['without-compiler']
    os.environ[backend.SWITCH] = 'all' if compares else '1'
    for switch in backend.OPT_IN.values():
        os.environ.pop(switch, None)
    if compares:  # float32 is that, not the 19 bits in which convolutions have it by default
        torch.backends.cudnn.allow_tf32 = False
