"""Train and evaluate a config once, with a bar: for the demo and the study of token mixers."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

import torch
from mmengine.config import Config

from mmpoolformer.utils.files import replace_file
from mmpoolformer.utils.progress import Bars

ROOT = Path(__file__).resolve().parent.parent
# Takes a tenth off a small step on the CPU; PyTorch has it there from 2.4 on.
OPTIONS = []
if hasattr(torch.library, 'custom_op'):
    OPTIONS = ['--cfg-options', 'optim_wrapper.optimizer.fused=True']


# Two threads that parse configs at once end in a SystemError of Python 3.11.
PARSING = Lock()


class TrainingError(RuntimeError):
    """A training that failed, with the end of its log."""


def side_by_side(train: Callable, runs: Iterable[tuple], jobs: int, bars: Bars) -> list:
    """Train several at a time: more images a second than one after the other on all cores.

    Args:
        train: Is called with the arguments of a run and the threads that it may use.
        runs: Arguments of each run.
        jobs: Runs at a time.
        bars: Gets a line if one fails.

    Returns:
        What each run returned, in order.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, *run, threads) for run in runs]
        try:
            for future in as_completed(futures):
                future.result()  # the first that fails ends this
            return [future.result() for future in futures]
        except BaseException as error:
            bars.console.print(f'{type(error).__name__}: ends after the trainings under way')
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_once(config: Path, work_dir: Path, bars: Bars, threads: int) -> dict:
    """Train and evaluate, unless that was done with this very config and as many threads.

    Args:
        config: Path of the config.
        work_dir: Is emptied first, and gets ``result.json`` when all is done.
        bars: Get one for the run.
        threads: Threads of the run.

    Returns:
        ``config``, ``model``, ``seconds``, ``cpu_seconds`` of all its processes, and ``metrics``.

    Raises:
        TrainingError: The run failed.
    """
    result_file = work_dir / 'result.json'
    with PARSING:
        recipe = f'{Config.fromfile(config).pretty_text}{OPTIONS}{threads}'
    key = hashlib.sha256(recipe.encode()).hexdigest()
    if result_file.is_file():
        result = json.loads(result_file.read_text())
        if result['key'] == key:
            return result
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)

    started = time.time()
    cpu_seconds = train(config, work_dir, bars, threads)
    result = dict(
        key=key,
        config=str(config),
        model=config.stem,
        seconds=time.time() - started,
        cpu_seconds=cpu_seconds,
        metrics=json.loads((work_dir / 'val_metrics.json').read_text()),
    )
    replace_file(result_file, json.dumps(result, indent=2))
    return result


def train(config: Path, work_dir: Path, bars: Bars, threads: int) -> float:
    """Run ``tools/train.py``, with its log in a file and its progress as a bar; CPU seconds."""
    script = ROOT / 'tools' / 'train.py'
    command = [sys.executable, script, config, '--work-dir', work_dir, *OPTIONS]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    log = work_dir / 'train.log'
    bars.console.print(f'training of {config.stem}, its log: {log}')
    task = bars.add_task(config.stem, total=None)
    with (
        log.open('w', buffering=1) as log_file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        for line in process.stdout:
            log_file.write(line)
            found = re.search(r'Iter\((train|val)\) +\[ *(\d+)/(\d+)\](?:.* loss: ([\d.]+))?', line)
            if found:
                split, done, total, loss = found.groups()
                state = f'loss {loss}' if split == 'train' else 'evaluation'
                bars.update(
                    task,
                    completed=int(done),
                    total=int(total),
                    description=f'{config.stem} {state}',
                )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text().splitlines()[-20:]
        raise TrainingError('\n'.join([f'training {config.stem} failed; all of it: {log}', *lines]))
    bars.update(task, completed=1, total=1, description=f'{config.stem} done')
    return usage.ru_utime + usage.ru_stime
