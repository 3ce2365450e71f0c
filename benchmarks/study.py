"""What the studies on the digits set share: data, budget, trainings, costs, tables and a plot.

A study trains contenders in RetinaNet and Semantic FPN, from random weights, with the same budget
and several seeds. What is done already is not done again, so an interrupted study goes on.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from common import REPORTS, ROOT, burst, in_turns, markdown, save_figure, without_gradients
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmpoolformer import MetaFormer
from mmpoolformer.utils.memory import reuse_freed_memory
from mmpoolformer.utils.progress import Bars

sys.path.insert(0, str(ROOT / 'dev'))  # what the demo and the studies train with
from training import PARSING, TrainingError, side_by_side, train_once

SIZE, BATCH = 128, 4
DIGITS = 1, 4  # in an image


class Task(NamedTuple):
    """One half of a study.

    Attributes:
        config: File in ``configs``.
        metric: Name in the run's metrics.
        name: Name on the page.
        iterations: Of each training, unless the command line says otherwise.
        scale: From the metric to percent.
    """

    config: str
    metric: str
    name: str
    iterations: int
    scale: int


TASKS = {
    'RetinaNet': Task(
        'detection/retinanet_poolformer-s12_fpn_digits.py', 'coco/bbox_mAP', 'box mAP', 750, 100
    ),
    'Semantic FPN': Task('segmentation/sem-fpn_poolformer-s12_digits.py', 'mIoU', 'mIoU', 400, 1),
}


def parse_args(
    description: str, name: str, contenders: Iterable[str], share: float = 1.0
) -> argparse.Namespace:
    """The options of a study.

    Args:
        description: What it does.
        name: Option for the contenders, and folder of the work.
        contenders: There are these.
        share: Of the tasks' iterations, for contenders that take long.
    """
    parser = argparse.ArgumentParser(description=description)
    contenders = list(contenders)
    parser.add_argument(f'--{name}', nargs='+', choices=contenders, default=contenders)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, help="of each training, not the tasks' own")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    parser.add_argument('--rounds', type=int, default=7, help='bursts of the speed measurement')
    work_dir = Path('work_dirs') / name
    parser.add_argument('--work-dir', type=Path, default=work_dir, help='keeps what is done')
    parser.add_argument('--out', type=Path, default=REPORTS, help='folder of the report')
    parser.set_defaults(share=share)
    args = parser.parse_args()
    if args.iterations is not None and args.iterations < 2:
        parser.error(f'--iterations {args.iterations}: give at least 2')
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: give at least 1')
    return args


# Training ------------------------------------------------------------------------------------


def train_all(
    contenders: Iterable[str], put: Callable[[Config, str], None], args: argparse.Namespace
) -> list[dict]:
    """Train and evaluate; one record for each task, contender and seed.

    Args:
        contenders: Their names.
        put: Puts one of them into a config.
        args: Of :func:`parse_args`.
    """
    data = args.work_dir / 'digits'
    if not data.exists():
        make_data = [sys.executable, ROOT / 'tools' / 'make_digits_dataset.py', data]
        make_data += ['--size', SIZE, '--digits', *DIGITS]
        subprocess.run(list(map(str, make_data)), check=True)
    runs = [(seed, name, task) for seed in args.seeds for name in contenders for task in TASKS]
    with Bars() as progress:
        everything = progress.add_task('all trainings', total=len(runs))

        def train(seed, contender, task, threads):
            with PARSING:
                config = write_config(seed, contender, task, put, args)
            work_dir = config.with_suffix('')
            result = train_once(config, work_dir, progress, threads)
            for checkpoint in work_dir.glob('*.pth'):
                checkpoint.unlink()
            progress.advance(everything)
            # Of a detector that finds nothing, mmdet reports nothing.
            metric = result['metrics'][TASKS[task].metric] if result['metrics'] else 0.0
            times = {key: result[key] for key in ('seconds', 'cpu_seconds')}
            score = TASKS[task].scale * metric
            return dict(task=task, contender=contender, seed=seed, score=score, **times)

        try:
            return side_by_side(train, runs, args.jobs, progress)
        except TrainingError as error:
            sys.exit(f'error: {error}')


def write_config(seed: int, contender: str, task: str, put: Callable, args) -> Path:
    """A digits config with a contender, smaller images and the study's budget."""
    cfg = Config.fromfile(ROOT / 'configs' / TASKS[task].config)
    iterations = budget(args)[task]
    put(cfg, contender)
    cfg.merge_from_dict({
        'randomness.seed': seed,
        'train_dataloader.batch_size': BATCH,
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'default_hooks.checkpoint.interval': iterations,
        'default_hooks.checkpoint.save_optimizer': False,
    })  # fmt: skip
    if 'bbox_head' in cfg.model:  # mmdet's, as for the numbers that are published
        cfg.model.bbox_head.anchor_generator.octave_base_scale = 4
    warm_up, decay = cfg.param_scheduler
    warm_up.end = max(2, min(warm_up.end, iterations // 2))
    decay.update(begin=warm_up.end, end=max(iterations, warm_up.end + 1))
    data, old = f'{args.work_dir / "digits"}/', cfg.data_root
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = data
        for step in loader.dataset.pipeline:
            for key in {'scale', 'crop_size'} & set(step):
                step[key] = SIZE, SIZE
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = SIZE, SIZE
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = evaluator.ann_file.replace(old, data)
    name = f'{task} {contender} {seed}'.lower().replace(' ', '_')
    path = args.work_dir / f'{name}.py'
    cfg.dump(path)
    return path


# Costs ---------------------------------------------------------------------------------------


def cost(model: nn.Module) -> dict:
    """Parameters of a backbone, and multiplications with addition for one image.

    Args:
        model: Has no weights afterwards, and ours is on the plain path.
    """
    model = model.to('meta')
    if isinstance(model, MetaFormer):
        model.token_mixing = 'plain'  # the fused operations hide what they multiply
    counter = FlopCounterMode(display=False)
    with counter:
        without_gradients(model, torch.zeros(1, 3, SIZE, SIZE, device='meta'))
    learned = [p.numel() for p in model.parameters() if p.requires_grad]
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    return dict(
        parameters=sum(learned),
        frozen=sum(frozen),
        macs=counter.get_total_flops() // 2,
        milliseconds={},
    )


def measure_speed(costs: dict[str, dict], models: dict[str, nn.Module], size: int, rounds: int):
    """Add medians of milliseconds for one image of a size, the models in turns."""
    reuse_freed_memory()  # as tools/test.py does
    image = torch.randn(1, 3, size, size)
    steps = {name: partial(without_gradients, model, image) for name, model in models.items()}
    bursts = {name: partial(burst, step, 'cpu') for name, step in steps.items()}
    for name, values in in_turns(bursts, rounds).items():
        costs[name]['milliseconds'][str(size)] = statistics.median(values)


# Report --------------------------------------------------------------------------------------


def budget(args: argparse.Namespace) -> dict[str, int]:
    """Iterations of each task."""
    return {
        name: args.iterations or round(args.share * its.iterations) for name, its in TASKS.items()
    }


def in_words(iterations: dict[str, int]) -> str:
    """The budget and the data, as a page says them."""
    parts = ' and '.join(f'{n} ({task})' for task, n in iterations.items())
    return (
        f'From random weights, {parts} iterations of {BATCH} images of {SIZE}×{SIZE} '
        f'(`make_digits_dataset.py --size {SIZE} --digits {DIGITS[0]} {DIGITS[1]}`, 800 training '
        'and 160 validation images), else the digits configs of RetinaNet, with anchors as large '
        'as mmdet’s, and Semantic FPN: AdamW, learning rate 1e-3'
    )


def scores(records: list[dict], task: str, contender: str) -> list[float]:
    return [r['score'] for r in records if (r['task'], r['contender']) == (task, contender)]


def mean(records: list[dict], task: str, contender: str) -> float:
    return statistics.mean(scores(records, task, contender))


def spread(values: list[float]) -> float:
    """Standard deviation over the seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def score_cells(records: list[dict], contender: str) -> list[str]:
    """Mean ± standard deviation for each task."""
    found = (scores(records, task, contender) for task in TASKS)
    return [f'{statistics.mean(values):.1f} ± {spread(values):.1f}' for values in found]


def score_headings() -> list[str]:
    return [f'{task} {TASKS[task].name}' for task in TASKS]


def findings(records: list[dict]) -> list[str]:
    """From where to where the scores of each task go, and how far seeds are apart; a line each."""
    lines = []
    contenders = list(dict.fromkeys(record['contender'] for record in records))
    for task in TASKS:
        means = {contender: mean(records, task, contender) for contender in contenders}
        noise = statistics.mean(spread(scores(records, task, each)) for each in contenders)
        ranking = sorted(means, key=means.get, reverse=True)
        best, worst = ranking[0], ranking[-1]
        lines.append(
            f'- **{task}**, {TASKS[task].name}: from {means[best]:.1f} ({best}) to '
            f'{means[worst]:.1f} ({worst}); the seeds of one differ by {noise:.1f} '
            '(standard deviation, mean over all).'
        )
    return lines


def paired_table(records: list[dict], contenders: Iterable[str], reference: str) -> list[str]:
    """Differences to one of them with the same seed, which draws the same order of images."""
    if reference not in contenders:
        return []
    rows = []
    for contender in contenders:
        cells = []
        for task in TASKS:
            pairs = zip(
                scores(records, task, contender), scores(records, task, reference), strict=True
            )
            differences = [ours - theirs for ours, theirs in pairs]
            cells.append(f'{statistics.mean(differences):+.1f} ± {spread(differences):.1f}')
        if contender != reference:
            rows.append((contender, *cells))
    return [
        f'A seed draws the same order of images for all. Differences to {reference} with the same '
        'seed, mean ± standard deviation:',
        '',
        *markdown(('', *score_headings()), rows),
    ]


def plot(records: list[dict], costs: dict[str, dict], path: Path):
    """A row for each: a dot per seed and a line at the mean for each task, and the time."""
    first = next(iter(TASKS))
    order = sorted(costs, key=lambda contender: mean(records, first, contender))
    figure, axes = plt.subplots(
        1, len(TASKS) + 1, figsize=(11, 0.45 * len(order) + 1.3), sharey=True
    )
    for axis, task in zip(axes, TASKS):
        for row, contender in enumerate(order):
            values = scores(records, task, contender)
            axis.plot(values, [row] * len(values), 'o', color='tab:blue', alpha=0.6)
            axis.plot([statistics.mean(values)] * 2, [row - 0.3, row + 0.3], color='black')
        axis.set_title(task)
        axis.set_xlabel(TASKS[task].name)
    axes[-1].barh(
        range(len(order)),
        [costs[contender]['milliseconds'][str(SIZE)] for contender in order],
        color='tab:gray',
    )
    axes[-1].set_title('Backbone')
    axes[-1].set_xlabel(f'ms for one image of {SIZE}×{SIZE}')
    axes[0].set_yticks(range(len(order)), order)
    for axis in axes:
        axis.grid(axis='x', alpha=0.3)
    save_figure(figure, path)
