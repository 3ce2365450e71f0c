"""Train and evaluate a detector and a segmentor on the digits data set, on two CPU cores.

Prints one table and draws predictions on validation images beside the ground truth. What is
done already is not done again.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config
from pycocotools.coco import COCO
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'data' / 'digits'
OUT = ROOT / 'work_dirs' / 'demo'
CONFIGS = (
    ROOT / 'configs' / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py',
    ROOT / 'configs' / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py',
)
PICTURE = 'predictions.png'
COLUMNS = 6
SCORE_THRESHOLD = 0.2


def main():
    os.chdir(ROOT)  # the configs name data/digits
    if not DATA.exists():
        subprocess.run([sys.executable, 'tools/make_digits_dataset.py', DATA], check=True)
    try:
        with Progress() as progress:
            results = [train_once(config, OUT / config.stem, progress) for config in CONFIGS]
    except TrainingError as error:
        sys.exit(f'error: {error}')
    for result in results:
        result['parameters'] = draw(result['config'], OUT / result['model'])
    show_table(results)


class TrainingError(RuntimeError):
    """A training that failed, with the end of its log."""


def train_once(config: Path, work_dir: Path, progress: Progress, threads: int = 0) -> dict:
    """Train and evaluate, unless that was done with this very config.

    Args:
        config: Path of the config.
        work_dir: Is emptied first, and gets ``result.json`` when all is done.
        progress: Gets a bar for the run.
        threads: Threads of the run; 0 leaves it to PyTorch.

    Returns:
        ``config``, ``model``, ``seconds`` and ``metrics``.

    Raises:
        TrainingError: The run failed.
    """
    result_file = work_dir / 'result.json'
    key = hashlib.sha256(Config.fromfile(config).pretty_text.encode()).hexdigest()
    if result_file.is_file():
        result = json.loads(result_file.read_text())
        if result['key'] == key:
            return result
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)

    started = time.time()
    train(config, work_dir, progress, threads)
    result = dict(
        key=key,
        config=str(config),
        model=config.stem,
        seconds=time.time() - started,
        metrics=json.loads((work_dir / 'val_metrics.json').read_text()),
    )
    partial = result_file.with_suffix('.partial')
    partial.write_text(json.dumps(result, indent=2))
    partial.replace(result_file)
    return result


def train(config: Path, work_dir: Path, progress: Progress, threads: int):
    """Run ``tools/train.py``, with its log in a file and its progress as a bar."""
    command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', work_dir]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads)) if threads else None
    log = work_dir / 'train.log'
    task = progress.add_task(config.stem, total=None)
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
            found = re.search(r'Iter\(train\) +\[ *(\d+)/(\d+)\].* loss: ([\d.]+)', line)
            if found:
                done, total, loss = found.groups()
                description = f'{config.stem} loss {loss}'
                progress.update(
                    task, completed=int(done), total=int(total), description=description
                )
    if process.returncode:
        lines = log.read_text().splitlines()[-20:]
        raise TrainingError('\n'.join([f'training {config.stem} failed; all of it: {log}', *lines]))
    progress.update(task, completed=1, total=1)


def draw(config: str, work_dir: Path) -> int:
    """Draw predictions beside the ground truth; return the model's number of parameters."""
    cfg = Config.fromfile(config)
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    draw_task = draw_detections if cfg.default_scope == 'mmdet' else draw_segmentations
    model = draw_task(cfg, checkpoint, work_dir / PICTURE)
    return sum(p.numel() for p in model.parameters())


def draw_detections(cfg: Config, checkpoint: str, path: Path) -> torch.nn.Module:
    from mmcv.ops import nms
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(cfg, checkpoint, device='cpu')
    coco = COCO(cfg.val_evaluator.ann_file)
    figure, axes = plt.subplots(2, COLUMNS, figsize=(2.6 * COLUMNS, 5.8))
    for column, info in zip(axes.T, coco.loadImgs(coco.getImgIds()[:COLUMNS])):
        file = DATA / 'images' / 'validation' / info['file_name']
        image = mmcv.imread(str(file))
        truth = coco.loadAnns(coco.getAnnIds(info['id']))
        draw_boxes(
            column[0],
            image,
            [(*a['bbox'], coco.cats[a['category_id']]['name']) for a in truth],
            'ground truth',
        )
        found = inference_detector(model, image).pred_instances
        # One box per digit, whatever its class: pictures want fewer boxes than the metric.
        found = found[found.scores > SCORE_THRESHOLD]
        found = found[nms(found.bboxes, found.scores, 0.5)[1]].numpy()
        draw_boxes(
            column[1],
            image,
            [
                (x0, y0, x1 - x0, y1 - y0, f'{label} ({score:.2f})')
                for (x0, y0, x1, y1), label, score in zip(found.bboxes, found.labels, found.scores)
            ],
            'prediction',
        )
    save(figure, path)
    return model


def draw_boxes(axis, image, boxes, title):
    axis.imshow(image[..., ::-1])
    axis.set_title(title, fontsize=9)
    for x, y, width, height, text in boxes:
        axis.add_patch(Rectangle((x, y), width, height, fill=False, color='yellow', lw=1.5))
        label = dict(facecolor='black', alpha=0.7, pad=1, lw=0)
        axis.text(x, y - 2, text, color='yellow', fontsize=8, bbox=label)


def draw_segmentations(cfg: Config, checkpoint: str, path: Path) -> torch.nn.Module:
    from mmseg.apis import inference_model, init_model

    model = init_model(cfg, checkpoint, device='cpu')
    palette = np.array([*cfg.metainfo.palette, [0, 0, 0]], np.uint8)
    files = sorted((DATA / 'images' / 'validation').glob('*.jpg'))[:COLUMNS]
    figure, axes = plt.subplots(3, COLUMNS, figsize=(2.6 * COLUMNS, 8.6))
    for column, file in zip(axes.T, files):
        image = mmcv.imread(str(file))
        labels = mmcv.imread(
            str(DATA / 'annotations' / 'validation' / f'{file.stem}.png'), 'unchanged'
        )
        found = inference_model(model, image).pred_sem_seg.data[0].numpy()
        # Label 0 is unlabelled: it becomes -1, the black at the palette's end.
        pictures = image[..., ::-1], palette[labels.astype(int) - 1], palette[found]
        for axis, picture, title in zip(column, pictures, ('image', 'ground truth', 'prediction')):
            axis.imshow(picture)
            axis.set_title(title, fontsize=9)
    colours = [
        Patch(facecolor=np.array(colour) / 255, edgecolor='black', label=name)
        for name, colour in zip(cfg.metainfo.classes, cfg.metainfo.palette)
    ]
    figure.legend(handles=colours, loc='lower center', ncols=len(colours), fontsize=9)
    save(figure, path)
    return model


def save(figure, path: Path):
    for axis in figure.axes:
        axis.set_axis_off()
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f'predictions beside the ground truth: {path.relative_to(ROOT)}')


def show_table(results: list[dict]):
    table = Table(title='Digits on textures, from random weights')
    for heading in ('model', 'box mAP', 'mAP50', 'mIoU', 'seconds', 'parameters'):
        table.add_column(heading, justify='left' if heading == 'model' else 'right')
    for result in results:
        metrics = result['metrics']

        def metric(name, metrics=metrics):
            return f'{metrics[name]:.3g}' if name in metrics else '–'

        table.add_row(
            result['model'],
            metric('coco/bbox_mAP'),
            metric('coco/bbox_mAP_50'),
            metric('mIoU'),
            f'{result["seconds"]:.0f}',
            f'{result["parameters"] / 1e6:.2f} M',
        )
    Console(width=100).print(table)


if __name__ == '__main__':
    main()
