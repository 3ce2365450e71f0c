"""Shared fixtures: tiny data sets with the published layouts, and the launchers."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmpoolformer.archs import ARCHS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
ALL_CONFIGS = sorted(CONFIGS.glob('*/*.py'))
FAMILY = [path for path in ALL_CONFIGS if 'poolformer' not in path.name]
DIGITS = [path for path in ALL_CONFIGS if 'digits' in path.name]
PUBLISHED = [path for path in ALL_CONFIGS if path not in FAMILY + DIGITS]

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is imported, by whoever is first

TINY_CONFIG = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch=dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32)),
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=dict(_delete_=True, type='BN')),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(48, 48)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root={root!r}, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root={root!r})
)
test_dataloader = val_dataloader
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
custom_imports = dict(imports=['mmpoolformer'])
"""
TINY_BY_ITERATION = """
train_cfg = dict(max_iters={iters}, val_interval=4)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=3, max_keep_ckpts=2, save_best='mIoU')
)
"""
TINY_BY_EPOCH = """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs={iters} // 2, val_interval=2)
train_dataloader.update(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1)]
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2, save_best='mIoU'),
)
"""
TINY_LOOPS = {
    'by_iteration': TINY_BY_ITERATION,
    'by_epoch': TINY_BY_EPOCH,
}  # the data set gives two per epoch


# Dynamo of torch 2.1 breaks the graph at what later versions trace.
needs_whole_graphs = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4 or later'
)


def timm_to_official(key):
    """The official name of a tensor of timm's PoolFormer, written down apart from the package."""
    for pattern, replacement in (
        (r'^stem\.conv', 'patch_embed.proj'),
        (r'^stages\.(\d)\.downsample\.conv', lambda m: f'network.{2 * int(m[1]) - 1}.proj'),
        (r'^stages\.(\d)\.blocks\.', lambda m: f'network.{2 * int(m[1])}.'),
        (r'layer_scale(\d)\.scale', r'layer_scale_\1'),
        (r'^head\.norm', 'norm'),
        (r'^head\.fc', 'head'),
    ):
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture(scope='session')
def coco_root(tmp_path_factory):
    """COCO's layout and its 80 classes: four training and two validation images."""
    mmdet_datasets = pytest.importorskip('mmdet.datasets')
    root = tmp_path_factory.mktemp('coco')
    classes = mmdet_datasets.CocoDataset.METAINFO['classes']
    rng = np.random.default_rng(0)
    for split, count in (('train2017', 4), ('val2017', 2)):
        (root / split).mkdir()
        coco = {
            'images': [],
            'annotations': [],
            'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(classes)],
        }
        for image_id in range(count):
            width, height = (96, 72) if image_id % 2 else (72, 96)
            name = f'{image_id:012d}.jpg'
            save_noise(root / split / name, width, height, rng)
            coco['images'].append(
                {'id': image_id, 'file_name': name, 'width': width, 'height': height}
            )
            for x, y, w, h in ((5, 8, 40, 36), (30, 30, 35, 40)):
                coco['annotations'].append(
                    {
                        'id': len(coco['annotations']) + 1,
                        'image_id': image_id,
                        'category_id': int(rng.integers(1, 81)),
                        'bbox': [x, y, w, h],
                        'area': w * h,
                        'iscrowd': 0,
                        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))
    return root


@pytest.fixture(scope='session')
def ade_root(tmp_path_factory):
    """ADE20K's layout and label values 0 (unlabelled) to 150."""
    root = tmp_path_factory.mktemp('ade') / 'ADEChallengeData2016'
    rng = np.random.default_rng(0)
    for split, count in (('training', 4), ('validation', 2)):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            save_noise(root / 'images' / split / f'ADE_{i:08d}.jpg', 100, 75, rng)
            labels = rng.integers(0, 151, (5, 4)).astype(np.uint8).repeat(15, 0).repeat(25, 1)
            Image.fromarray(labels).save(root / 'annotations' / split / f'ADE_{i:08d}.png')
    return root


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory):
    """A small digits data set, made by the tool itself."""
    root = tmp_path_factory.mktemp('digits') / 'digits'
    run_tool('make_digits_dataset', root, '--train', 4, '--val', 2, '--size', 64)
    return root


def save_noise(path, width, height, rng):
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def load_tool(name, run_name=None):
    """The names that a script of ``tools/`` defines; like Python, with its folder on the path."""
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        return runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name=run_name)
    finally:
        sys.path.pop(0)


def run_tool(name, *args):
    """Run a script of ``tools/`` in this process, as the command line would."""
    argv, sys.argv = sys.argv, [f'{name}.py', *map(str, args)]
    local_rank = os.environ.pop('LOCAL_RANK', None)
    try:
        load_tool(name, run_name='__main__')
    finally:
        sys.argv = argv
        os.environ.pop('LOCAL_RANK', None)
        if local_rank is not None:
            os.environ['LOCAL_RANK'] = local_rank


def tool_error(capsys, name, *args):
    """Run a script that must refuse its input; return its message, one without a stack trace."""
    with pytest.raises(SystemExit) as stop:
        run_tool(name, *args)
    assert stop.value.code not in (0, None)
    message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert 'Traceback' not in message
    return message


def train_options(config, data_root):
    """``--cfg-options`` that make two cheap iterations and an evaluation of any config here."""
    options = {'model.backbone.init_cfg': None}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
        options[f'{split}_dataloader.batch_size'] = 2 if split == 'train' else 1
        dataset = f'{split}_dataloader.dataset'
        if split == 'train' and 'sem-fpn' in config.name and 'digits' not in config.name:
            dataset += '.dataset'
        options[f'{dataset}.data_root'] = f'{data_root}/'
    if config.parent.name == 'segmentation':
        options['train_cfg.max_iters'] = options['train_cfg.val_interval'] = 2
        options['model.data_preprocessor.size'] = '(64,64)'
        if 'digits' not in config.name:
            options['train_dataloader.dataset.dataset.pipeline.2.scale'] = '(128,64)'
            options['train_dataloader.dataset.dataset.pipeline.3.crop_size'] = '(64,64)'
            options['val_dataloader.dataset.pipeline.1.scale'] = '(128,64)'
            options['test_dataloader.dataset.pipeline.1.scale'] = '(128,64)'
    else:
        annotations = 'instances_validation' if 'digits' in config.name else 'instances_val2017'
        for split in ('val', 'test'):
            options[f'{split}_evaluator.ann_file'] = f'{data_root}/annotations/{annotations}.json'
        # An undertrained detector has no box above the usual threshold.
        rcnn = 'rcnn.' if 'mask-rcnn' in config.name else ''
        options[f'model.test_cfg.{rcnn}score_thr'] = 0.0
        options[f'model.test_cfg.{rcnn}max_per_img'] = 10
        if 'digits' in config.name:
            options['train_cfg.max_iters'] = options['train_cfg.val_interval'] = 2
        else:
            options['train_cfg.max_epochs'] = 1
            options['train_dataloader.dataset.pipeline.2.scale'] = '(96,96)'
            options['val_dataloader.dataset.pipeline.1.scale'] = '(96,96)'
            options['test_dataloader.dataset.pipeline.1.scale'] = '(96,96)'
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def write_tiny_config(folder, loop, root, iters=8):
    """Write a config of a segmentor of a few channels on a small digits data set."""
    base = str(CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py')
    path = folder / 'tiny.py'
    path.write_text(
        TINY_CONFIG.format(base=base, root=f'{root}/') + TINY_LOOPS[loop].format(iters=iters)
    )
    return path


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    """The project's wheel, built from a copy of what the source distribution would hold."""
    source = tmp_path_factory.mktemp('source') / 'mmpoolformer'
    ignored = shutil.ignore_patterns(
        '.*', 'data', 'work_dirs', 'build', '*.egg-info', '__pycache__'
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*pip, source, '-w', out], check=True)
    return next(out.glob('*.whl'))
