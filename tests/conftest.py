"""Fixtures for all rooms: tiny data sets with the published layouts, and the wheel."""

import os

# The same on every machine: the rooms are tested without a GPU, tests/ops also on one
# (`make test-gpu`). Before torch looks for it.
if os.environ.get('MMPOOLFORMER_TEST_GPU') != '1':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

import gc
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, run_tool, save_noise
from mmengine.logging import MMLogger
from PIL import Image
from yapf.yapflib import yapf_api

from mmpoolformer.archs import ARCHS

torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')  # for the processes that tests start
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is imported, by whoever is first


def format_each_text_once():
    """Every checkpoint holds its config, formatted anew: most of the time of a tiny training."""
    formatted, format_code = {}, yapf_api.FormatCode

    def format_once(text, **options):
        key = text, repr(options)
        if key not in formatted:
            formatted[key] = format_code(text, **options)
        return formatted[key]

    yapf_api.FormatCode = format_once


format_each_text_once()


def pytest_collection_finish():
    # mmengine collects garbage for every data set; what the imports left needs no look.
    gc.collect()
    gc.freeze()


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
    counts = '--train', 4, '--val', 2, '--digits', 1, 4
    run_tool('make_digits_dataset', root, *counts, '--size', 64)
    return root


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


@pytest.fixture
def file_of(tmp_path):
    def save(contents):
        torch.save(contents, tmp_path / 'weights.pth')
        return tmp_path / 'weights.pth'

    return save


@pytest.fixture
def log():
    """What mmengine's logger is given."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append((record.levelname, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def image():
    return torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def own_coco(tmp_path):
    """Ten images with one object of each of three classes."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    images, annotations = [], []
    for number in range(10):
        save_noise(tmp_path / 'images' / f'{number}.jpg', 64, 64, rng)
        images.append(dict(id=number, file_name=f'{number}.jpg', width=64, height=64))
        for k in range(3):
            x = 20 * k
            corners = [x, 5, x + 20, 5, x + 20, 40, x, 40]
            annotations.append(
                dict(
                    id=len(annotations), image_id=number, category_id=10 * k + 7, iscrowd=0,
                    bbox=[x, 5, 20, 35], area=700, segmentation=[corners],
                )
            )  # fmt: skip
    categories = [
        dict(id=10 * k + 7, name=name) for k, name in enumerate(('screw', 'nut', 'washer'))
    ]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'all.json').write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def own_label_maps(tmp_path):
    """Ten images and label maps of the four values 0 to 3."""
    rng = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for number in range(10):
        save_noise(tmp_path / 'images' / f'{number}.jpg', 64, 64, rng)
        labels = rng.integers(0, 4, (8, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(labels).save(tmp_path / 'labels' / f'{number}.png')
    (tmp_path / 'classes.txt').write_text('sky\nroof\nwall\nground\n')
    return tmp_path
