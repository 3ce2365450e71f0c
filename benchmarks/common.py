"""What the makers of the reports share: paths, models, timing, memory, tables and files."""

import ctypes
import gc
import json
import os
import platform
import re
import textwrap
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ['MPLBACKEND'] = 'agg'
import matplotlib.pyplot as plt
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmpoolformer.utils.config_tree import unsync_batch_norms
from mmpoolformer.utils.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / 'docs' / 'reports'


def machine(device: str) -> dict[str, str]:
    """What a page says about where its numbers come from."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        cpu_info = Path('/proc/cpuinfo')
        found = cpu_info.exists() and re.search(r'model name\s*: (.+)', cpu_info.read_text())
        processor = found[1] if found else platform.processor()
        instructions = torch.backends.cpu.get_cpu_capability()
        name = f'{processor}, {instructions}, {torch.get_num_threads()} threads'
    return dict(name=name, torch=torch.__version__, timm=version('timm'))


def machine_line(about: dict[str, str]) -> str:
    """A machine and the versions on it, as a page says them."""
    versions = ', '.join(f'{name} {about[name]}' for name in about if name != 'name')
    return f'{about["name"]}; {versions}'


def earlier_records(path: Path, **about) -> list[dict]:
    """What a file of measured numbers holds already.

    Args:
        path: The file, which need not be there.
        about: What it says of the place where it was measured, ``machine`` among it.

    Raises:
        ValueError: It was measured elsewhere, or with other versions.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    records = content.pop('records')
    if content != about:
        raise ValueError(
            f'{path} holds rows of {machine_line(content["machine"])}; here is '
            f'{machine_line(about["machine"])}. Rows of one table come from one machine: remove '
            'the file, or give another --out'
        )
    return records


# Models --------------------------------------------------------------------------------------


def build_for_training(config: str) -> nn.Module:
    """Build the model of a config here, with random weights, for training on one device.

    Args:
        config: Name of a file in ``configs/detection`` or ``configs/segmentation``.
    """
    (path,) = (ROOT / 'configs').glob(f'*/{config}')
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    unsync_batch_norms(cfg.model)
    return MODELS.build(cfg.model).train()


def without_gradients(model: nn.Module, image: Tensor):
    with torch.no_grad():
        return model(image)


# Time and memory -----------------------------------------------------------------------------


def burst(step: Callable, device: str, calls: int = 3) -> list[float]:
    """Milliseconds of all calls in a row but the first."""
    values = []
    for _ in range(calls):
        if device == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            values.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            step()
            values.append(1e3 * (time.perf_counter() - start))
    return values[1:]


def in_turns(bursts: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every contender, burst by burst in turns: drifts hit all of them."""
    times = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, run in bursts.items():
            times[name] += run()
    return times


def peak_memory(step: Callable, device: str) -> float | None:
    """MiB that a step needs on top of what is allocated before it; ``None`` if unknown."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _resident('VmRSS')
        step()
        return (_resident('VmHWM') - before) / 2**10
    except OSError:
        return None


def _resident(field: str) -> int:
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


# Progress and reports ------------------------------------------------------------------------


def markdown(headings, rows) -> list[str]:
    """The lines of a table."""
    line = '| {} |'.format
    head = [line(' | '.join(headings)), '|' + '---|' * len(headings)]
    return head + [line(' | '.join(str(cell) for cell in row)) for row in rows]


def write_page(path: Path, lines: list[str]):
    """Write a page, its paragraphs and lists in short lines, and say where it is."""
    text = '\n'.join(wrapped for line in lines for wrapped in short_lines(line))
    replace_file(path, text.rstrip() + '\n')
    print(f'report: {path}')


def short_lines(line: str) -> list[str]:
    """Break a line of a page at 120 characters, but not rows of tables, pictures and headings."""
    if len(line) <= 120 or line.startswith(('|', '!', '#')):
        return [line]
    indent = '  ' if line.startswith('- ') else ''
    return textwrap.wrap(
        line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def write_json(path: Path, content: dict):
    """Write measured numbers, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1) + '\n')


def save_figure(figure: plt.Figure, path: Path):
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
