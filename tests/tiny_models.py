"""Tiny detectors and segmentors with the weights of no training, as files for the tools."""

import cv2
import numpy as np
import torch
from helpers import CONFIGS, random_weights
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

DIGITS = tuple('0123456789')
CHANNELS = (8, 16, 24, 32)
BACKBONE = dict(arch=dict(layers=(1, 1, 1, 1), embed_dims=CHANNELS))
BASES = {
    'retinanet': CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py',
    'mask-rcnn': CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_digits.py',
    'sem-fpn': CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py',
}
OPTIONS = {
    'retinanet': {
        'model.neck.out_channels': 16,
        'model.bbox_head.in_channels': 16,
        'model.bbox_head.feat_channels': 16,
        'model.test_cfg.score_thr': 0.0,
        'model.test_cfg.max_per_img': 5,
    },
    'mask-rcnn': {'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 3},
    'sem-fpn': {'model.neck.out_channels': 16, 'model.decode_head.in_channels': [16] * 4},
}


def save_tiny_model(folder, name, backbone=None, meta=None, classes=None):
    """Write ``tiny.py`` and ``tiny.pth``.

    Args:
        folder: Where to.
        name: A key of ``BASES``.
        backbone: Another backbone than a tiny PoolFormer.
        meta: What the checkpoint says about the classes, unlike the config.
        classes: Other names than those of the digits data.

    Returns:
        Both paths.
    """
    cfg = Config.fromfile(BASES[name])
    cfg.merge_from_dict(OPTIONS[name])
    stages = tuple(cfg.model.backbone.get('out_indices', range(4)))
    backbone = backbone or dict(type='PoolFormer', **BACKBONE)
    channels = backbone.get('arch', BACKBONE['arch'])['embed_dims']
    cfg.model.neck.in_channels = [channels[stage] for stage in stages]
    cfg.model.backbone = dict(backbone, out_indices=stages)
    if classes is not None:
        palette = [(10 * number, 255 - 10 * number, 0) for number in range(len(classes))]
        cfg.test_dataloader.dataset.metainfo = dict(classes=classes, palette=palette)
    cfg.dump(folder / 'tiny.py')
    init_default_scope(cfg.default_scope)
    model = random_weights(MODELS.build(cfg.model))
    metainfo = cfg.test_dataloader.dataset.metainfo.to_dict()
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta or metainfo))
    torch.save(checkpoint, folder / 'tiny.pth')
    return folder / 'tiny.py', folder / 'tiny.pth'


def save_video(path, frames, width=64, height=48):
    """Write a video of noise that changes slowly."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (width, height))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        writer.write(small.repeat(8, 0).repeat(8, 1))
    writer.release()
