"""Rows of the benchmark and the detector's training step, by ``benchmarks/speed.py``."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from common import ROOT
from torch import Tensor

from .scale import Scale
from .stand_ins import is_stand_in

SIZES = {'training': 's24 512x512', 'inference': 's24 512x512', 'detector': 's12 800x1333'}


def benchmark(scale: Scale, mode: str, out: Path) -> Iterator[dict]:
    """Measure the case of a mode that the project has targets for."""
    if scale.is_reduced:
        yield dict(mode=mode, result='not run: needs CUDA')
        return
    if mode == 'detector':
        use_python_focal_loss()
    arch, size = SIZES[mode].split()
    options = ['--device', 'cuda', '--archs', arch, '--sizes', size, '--modes', mode]
    options += ['--dtypes', 'bfloat16', '--rounds', '5', '--out', str(out)]
    yield from run_speed(options, mode)


def run_speed(options: list[str], mode: str) -> Iterator[dict]:
    """Run the benchmark and read what it measured."""
    script = ROOT / 'benchmarks' / 'speed.py'
    argv, sys.argv = sys.argv, [str(script), *options]
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv = argv
    out, device = (options[options.index(name) + 1] for name in ('--out', '--device'))
    content = json.loads((Path(out) / 'benchmarks' / f'{device}-{mode}.json').read_text())
    for record in content['records']:
        yield {('failed' if key == 'error' else key): v for key, v in record.items()}


def use_python_focal_loss() -> None:
    """Let mmdet compute the focal loss in Python where mmcv's operations are absent.

    On a GPU it takes mmcv's, elsewhere its own.
    """
    if not is_stand_in('mmcv._ext'):
        return
    losses = importlib.import_module('mmdet.models.losses.focal_loss')

    def sigmoid_focal_loss(pred: Tensor, target: Tensor, *args, **kwargs) -> Tensor:
        classes = pred.shape[1]
        target = F.one_hot(target, classes + 1)[:, :classes]
        return losses.py_sigmoid_focal_loss(pred, target, *args, **kwargs)

    losses.sigmoid_focal_loss = sigmoid_focal_loss
