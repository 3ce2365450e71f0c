"""Train every token mixer in the same frame on the digits set; write docs/reports/token-mixers.md.

RetinaNet and Semantic FPN with the S12 frame, from random weights, with the same budget and
several seeds. What is done already is not done again, so an interrupted study goes on.
"""

import argparse
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from common import (
    REPORTS,
    ROOT,
    burst,
    in_turns,
    machine,
    markdown,
    save_figure,
    without_gradients,
    write_json,
    write_page,
)
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mmpoolformer import MetaFormer
from mmpoolformer.models.token_mixers import is_of_one_size
from mmpoolformer.utils.memory import reuse_freed_memory
from mmpoolformer.utils.progress import Bars

sys.path.insert(0, str(ROOT / 'dev'))  # what the demo and this study train with
from training import TrainingError, side_by_side, train_once

MIXERS = ('identity', 'random', 'pooling', 'spatial_mlp', 'sep_conv', 'attention')
FRAME = 'poolformer_s12'
SIZE, BATCH = 128, 4
DIGITS = 1, 4  # in an image
SPEED_SIZES = (SIZE, 512)


class Task(NamedTuple):
    """One half of the study.

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


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--mixers', nargs='+', choices=MIXERS, default=list(MIXERS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, help="of each training, not the tasks' own")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    parser.add_argument('--rounds', type=int, default=7, help='bursts of the speed measurement')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/token_mixers'), help='keeps what is done'
    )
    parser.add_argument('--out', type=Path, default=REPORTS, help='folder of the report')
    args = parser.parse_args()
    if args.iterations is not None and args.iterations < 2:
        parser.error(f'--iterations {args.iterations}: give at least 2')
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: give at least 1')
    return args


def main():
    args = parse_args()
    data = args.work_dir / 'digits'
    if not data.exists():
        make_data = [sys.executable, ROOT / 'tools' / 'make_digits_dataset.py', data]
        make_data += ['--size', SIZE, '--digits', *DIGITS]
        subprocess.run(list(map(str, make_data)), check=True)
    runs = [(seed, mixer, task) for seed in args.seeds for mixer in args.mixers for task in TASKS]
    try:
        records = train_all(runs, args)
    except TrainingError as error:
        sys.exit(f'error: {error}')
    costs = {mixer: cost(mixer) for mixer in args.mixers}
    measure_speed(costs, args.rounds)
    write(args, records, costs)


# Training ------------------------------------------------------------------------------------


def train_all(runs: list[tuple], args) -> list[dict]:
    """Train and evaluate; one record each."""
    with Bars() as progress:
        everything = progress.add_task('all trainings', total=len(runs))

        def train(seed, mixer, task, threads):
            config = write_config(seed, mixer, task, args)
            work_dir = config.with_suffix('')
            result = train_once(config, work_dir, progress, threads)
            for checkpoint in work_dir.glob('*.pth'):
                checkpoint.unlink()
            progress.advance(everything)
            # Of a detector that finds nothing, mmdet reports nothing.
            metric = result['metrics'][TASKS[task].metric] if result['metrics'] else 0.0
            score = TASKS[task].scale * metric
            return dict(task=task, mixer=mixer, seed=seed, score=score, seconds=result['seconds'])

        return side_by_side(train, runs, args.jobs, progress)


def write_config(seed: int, mixer: str, task: str, args) -> Path:
    """A digits config with another mixer, smaller images and the study's budget."""
    cfg = Config.fromfile(ROOT / 'configs' / TASKS[task].config)
    iterations = args.iterations or TASKS[task].iterations
    cfg.merge_from_dict({
        'model.backbone.type': 'MetaFormer',
        'model.backbone.arch': FRAME,
        'model.backbone.token_mixers': mixer,
        'model.backbone.input_size': SIZE,
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
    warm_up.end = min(warm_up.end, iterations // 2)
    decay.update(begin=warm_up.end, end=iterations)
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
    name = f'{task} {mixer} {seed}'.lower().replace(' ', '_')
    path = args.work_dir / f'{name}.py'
    cfg.dump(path)
    return path


# Costs ---------------------------------------------------------------------------------------


def build(mixer: str, size: int) -> MetaFormer:
    torch.manual_seed(0)
    return MetaFormer(FRAME, token_mixers=mixer, input_size=size).eval()


def cost(mixer: str) -> dict:
    """Parameters, and multiplications with addition for one image, of the backbone."""
    model = build(mixer, SIZE).to('meta')
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


def measure_speed(costs: dict[str, dict], rounds: int):
    """Add medians of milliseconds for one image, the mixers in turns."""
    reuse_freed_memory()  # as tools/test.py does
    for size in SPEED_SIZES:
        image = torch.randn(1, 3, size, size)
        # A matrix over the positions of a large image would not fit.
        models = {m: build(m, size) for m in costs if size == SIZE or not is_of_one_size(m)}
        steps = {m: partial(without_gradients, model, image) for m, model in models.items()}
        bursts = {mixer: partial(burst, step, 'cpu') for mixer, step in steps.items()}
        for mixer, values in in_turns(bursts, rounds).items():
            costs[mixer]['milliseconds'][str(size)] = statistics.median(values)


# Report --------------------------------------------------------------------------------------


def write(args, records: list[dict], costs: dict[str, dict]):
    """Write the numbers, the plot and the page."""
    content = dict(
        machine=machine('cpu'),
        iterations={name: args.iterations or task.iterations for name, task in TASKS.items()},
        records=records,
        costs=costs,
    )
    folder = args.out / 'token-mixers'
    write_json(folder / 'study.json', content)
    plot(records, costs, folder / 'study.png')
    print('\n'.join(results_table(records, costs)))
    write_page(args.out / 'token-mixers.md', page(content))


def scores(records: list[dict], task: str, mixer: str) -> list[float]:
    return [r['score'] for r in records if (r['task'], r['mixer']) == (task, mixer)]


def mean(records: list[dict], task: str, mixer: str) -> float:
    return statistics.mean(scores(records, task, mixer))


def spread(values: list[float]) -> float:
    """Standard deviation over the seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def page(content: dict) -> list[str]:
    records, costs = content['records'], content['costs']
    iterations = ' and '.join(f'{n} ({task})' for task, n in content['iterations'].items())
    seeds = sorted({record['seed'] for record in records})
    hours = sum(record['seconds'] for record in records) / 3600
    name, versions = content['machine']['name'], content['machine']['torch']
    return [
        '# Token mixers',
        '',
        'Made by `benchmarks/token_mixers.py`; do not edit. Is it the frame or the mixer that '
        'counts (arXiv 2111.11418), asked again on dense prediction: every token mixer in the '
        'same frame (S12), trained with the same budget on the '
        '[digits](../guides/train.md#the-digits-data-set). '
        'How to use them: [MetaFormer](../metaformer.md).',
        '',
        *results_table(records, costs),
        '',
        f'Mean ± standard deviation over {len(seeds)} seeds. Parameters (in brackets: frozen '
        'ones), GMACs and milliseconds for one image are those of the backbone as built, in '
        'float32; «–» where the matrices over positions would not fit.',
        '',
        '![Scores of all runs, and milliseconds](token-mixers/study.png)',
        '',
        'A dot per seed, a line at the mean.',
        '',
        '## What it shows',
        '',
        *findings(records),
        '',
        *paired_table(records, costs),
        '',
        '## Budget',
        '',
        f'- From random weights, {iterations} iterations of {BATCH} images of {SIZE}×{SIZE} '
        f'(`make_digits_dataset.py --size {SIZE} --digits {DIGITS[0]} {DIGITS[1]}`, 800 training '
        'and 160 validation images), else '
        'the digits configs of RetinaNet, with anchors as large as mmdet’s, and Semantic FPN: '
        'AdamW, learning rate 1e-3, LayerScale 0.01. The recipe was made for pooling, and not '
        'tuned for the others.',
        '- So small a budget shows what a mixer learns soon, not where it ends.',
        '- No position embeddings: attention and identity know positions only from the '
        'convolutions between the stages and their padding.',
        f'- {len(records)} trainings, {hours:.1f} hours in all, on one core each, of {name}; '
        f'torch {versions}. [All numbers](token-mixers/study.json).',
    ]


def results_table(records: list[dict], costs: dict[str, dict]) -> list[str]:
    rows = []
    for mixer, its in costs.items():
        cells = []
        for task in TASKS:
            values = scores(records, task, mixer)
            cells.append(f'{statistics.mean(values):.1f} ± {spread(values):.1f}')
        frozen = f' (+ {its["frozen"] / 1e6:.1f})' if its['frozen'] else ''
        rows.append((
            mixer,
            *cells,
            f'{its["parameters"] / 1e6:.1f} M{frozen}',
            f'{its["macs"] / 1e9:.2f}',
            *(f'{its["milliseconds"][str(size)]:.1f}' if str(size) in its['milliseconds'] else '–'
              for size in SPEED_SIZES),
        ))  # fmt: skip
    headings = [f'{task} {TASKS[task].name}' for task in TASKS]
    sizes = [f'ms, {size}²' for size in SPEED_SIZES]
    return markdown(('mixer', *headings, 'parameters', f'GMACs, {SIZE}²', *sizes), rows)


def findings(records: list[dict]) -> list[str]:
    """What the numbers say about the frame and the mixer, in sentences."""
    lines = []
    mixers = list(dict.fromkeys(record['mixer'] for record in records))
    for task in TASKS:
        means = {mixer: mean(records, task, mixer) for mixer in mixers}
        noise = statistics.mean(spread(scores(records, task, mixer)) for mixer in mixers)
        ranking = sorted(means, key=means.get, reverse=True)
        best, worst = ranking[0], ranking[-1]
        line = (
            f'- **{task}**, {TASKS[task].name}: from {means[best]:.1f} ({best}) to '
            f'{means[worst]:.1f} ({worst}); the seeds of one mixer differ by {noise:.1f} '
            '(standard deviation, mean over mixers).'
        )
        if 'identity' in means and means[best] > 0:
            share = 100 * means['identity'] / means[best]
            line += f' The frame without any mixer reaches {share:.0f} % of the best.'
        lines.append(line)
    return lines


def paired_table(records: list[dict], costs: dict[str, dict]) -> list[str]:
    """Differences to pooling with the same seed, which draws the same order of images."""
    if 'pooling' not in costs:
        return []
    rows = []
    for mixer in costs:
        cells = []
        for task in TASKS:
            pairs = zip(scores(records, task, mixer), scores(records, task, 'pooling'), strict=True)
            differences = [ours - theirs for ours, theirs in pairs]
            cells.append(f'{statistics.mean(differences):+.1f} ± {spread(differences):.1f}')
        if mixer != 'pooling':
            rows.append((mixer, *cells))
    headings = [f'{task} {TASKS[task].name}' for task in TASKS]
    return [
        'A seed draws the same order of images for all mixers. Differences to pooling with the '
        'same seed, mean ± standard deviation:',
        '',
        *markdown(('mixer', *headings), rows),
    ]


def plot(records: list[dict], costs: dict[str, dict], path: Path):
    """A row per mixer: a dot per seed and a line at the mean for each task, and the time."""
    first = next(iter(TASKS))
    order = sorted(costs, key=lambda mixer: mean(records, first, mixer))
    figure, axes = plt.subplots(
        1, len(TASKS) + 1, figsize=(11, 0.45 * len(order) + 1.3), sharey=True
    )
    for axis, task in zip(axes, TASKS):
        for row, mixer in enumerate(order):
            values = scores(records, task, mixer)
            axis.plot(values, [row] * len(values), 'o', color='tab:blue', alpha=0.6)
            axis.plot([statistics.mean(values)] * 2, [row - 0.3, row + 0.3], color='black')
        axis.set_title(task)
        axis.set_xlabel(TASKS[task].name)
    axes[-1].barh(
        range(len(order)),
        [costs[mixer]['milliseconds'][str(SIZE)] for mixer in order],
        color='tab:gray',
    )
    axes[-1].set_title('Backbone')
    axes[-1].set_xlabel(f'ms for one image of {SIZE}×{SIZE}')
    axes[0].set_yticks(range(len(order)), order)
    for axis in axes:
        axis.grid(axis='x', alpha=0.3)
    save_figure(figure, path)


if __name__ == '__main__':
    main()
