"""Predictions beside the ground truth, for the demo."""

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

COLUMNS = 6
SCORE_THRESHOLD = 0.2


def draw(cfg: Config, checkpoint: str, data: Path, path: Path) -> int:
    """Draw predictions on validation images beside the ground truth.

    Args:
        cfg: The config of the model.
        checkpoint: Its weights.
        data: Folder of the digits data set.
        path: The picture.

    Returns:
        The model's number of parameters.
    """
    draw_task = draw_detections if cfg.default_scope == 'mmdet' else draw_segmentations
    model = draw_task(cfg, checkpoint, data, path)
    return sum(p.numel() for p in model.parameters())


def draw_detections(cfg: Config, checkpoint: str, data: Path, path: Path) -> torch.nn.Module:
    from mmdet.apis import init_detector

    model = init_detector(cfg, checkpoint, device='cpu')
    coco = COCO(cfg.val_evaluator.ann_file)
    figure, axes = plt.subplots(2, COLUMNS, figsize=(2.6 * COLUMNS, 5.8))
    for column, info in zip(axes.T, coco.loadImgs(coco.getImgIds()[:COLUMNS])):
        file = data / 'images' / 'validation' / info['file_name']
        image = mmcv.imread(str(file))
        truth = coco.loadAnns(coco.getAnnIds(info['id']))
        draw_boxes(
            column[0],
            image,
            [(*a['bbox'], coco.cats[a['category_id']]['name']) for a in truth],
            'ground truth',
        )
        draw_boxes(column[1], image, find_boxes(model, image), 'prediction')
    save(figure, path)
    return model


def find_boxes(model: torch.nn.Module, image: np.ndarray) -> list[tuple]:
    """What a detector finds: corner, width, height and label of each box."""
    from mmcv.ops import nms
    from mmdet.apis import inference_detector

    found = inference_detector(model, image).pred_instances
    # One box per digit, whatever its class: pictures want fewer boxes than the metric.
    found = found[found.scores > SCORE_THRESHOLD]
    found = found[nms(found.bboxes, found.scores, 0.5)[1]].numpy()
    return [
        (x0, y0, x1 - x0, y1 - y0, f'{label} ({score:.2f})')
        for (x0, y0, x1, y1), label, score in zip(found.bboxes, found.labels, found.scores)
    ]


def draw_boxes(axis, image, boxes, title):
    axis.imshow(image[..., ::-1])
    axis.set_title(title, fontsize=9)
    for x, y, width, height, text in boxes:
        axis.add_patch(Rectangle((x, y), width, height, fill=False, color='yellow', lw=1.5))
        label = dict(facecolor='black', alpha=0.7, pad=1, lw=0)
        axis.text(x, y - 2, text, color='yellow', fontsize=8, bbox=label)


def draw_segmentations(cfg: Config, checkpoint: str, data: Path, path: Path) -> torch.nn.Module:
    from mmseg.apis import init_model

    model = init_model(cfg, checkpoint, device='cpu')
    palette = palette_of(cfg)
    files = sorted((data / 'images' / 'validation').glob('*.jpg'))[:COLUMNS]
    figure, axes = plt.subplots(3, COLUMNS, figsize=(2.6 * COLUMNS, 8.6))
    for column, file in zip(axes.T, files):
        image = mmcv.imread(str(file))
        labels = mmcv.imread(
            str(data / 'annotations' / 'validation' / f'{file.stem}.png'), 'unchanged'
        )
        found = find_labels(model, image)
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


def find_labels(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """The class of each pixel ``[H, W]``, by a segmentor."""
    from mmseg.apis import inference_model

    return inference_model(model, image).pred_sem_seg.data[0].numpy()


def palette_of(cfg: Config) -> np.ndarray:
    """Colours of the classes, and black at the end for what has none."""
    return np.array([*cfg.metainfo.palette, [0, 0, 0]], np.uint8)


def save(figure, path: Path):
    for axis in figure.axes:
        axis.set_axis_off()
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
