"""Training and testing on bad input: one message that names the file and the cause."""

import json
import os
import re
import shutil
import subprocess
from unittest import mock

import pytest
import torch
from helpers import (
    CONFIGS,
    ROOT,
    run_tool,
    tool_error,
    train_options,
    write_tiny_config,
)
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.datasets.check import check_sample
from mmpoolformer.engine.hooks import KeepApart, name_errors

MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_1x_coco.py'


@pytest.fixture
def digits(digits_root, tmp_path):
    """A copy of the small data set, to be damaged, and a config that trains on it."""
    root = tmp_path / 'digits'
    shutil.copytree(digits_root, root)
    return root, write_tiny_config(tmp_path, 'by_iteration', root, iters=2)


def damage_image(root):
    path = next((root / 'images' / 'training').iterdir())
    path.write_bytes(b'')
    return path


def animate_image(root):
    path = next((root / 'images' / 'training').iterdir())
    size = Image.open(path).size
    frames = [Image.new('RGB', size, color) for color in ('red', 'green')]
    frames[0].save(path, format='PNG', save_all=True, append_images=frames[1:])
    return path


def damage_labels(root):
    path = next((root / 'annotations' / 'training').iterdir())
    path.write_bytes(b'no image')
    return path


def remove_labels(root):
    path = next((root / 'annotations' / 'training').iterdir())
    path.unlink()
    return path


def damage_validation_image(root):
    path = next((root / 'images' / 'validation').iterdir())
    path.write_bytes(b'')
    return path


def damage_label_values(root):
    path = next((root / 'annotations' / 'training').iterdir())
    Image.new('L', Image.open(path).size, 200).save(path)
    return path


def damage_label_size(root):
    path = next((root / 'annotations' / 'training').iterdir())
    Image.open(path).resize((70, 64), Image.Resampling.NEAREST).save(path)
    return path


def damage_validation_labels(root):
    path = next((root / 'annotations' / 'validation').iterdir())
    Image.new('L', Image.open(path).size, 200).save(path)
    return path


DAMAGES = [damage_image, animate_image, damage_labels, remove_labels, damage_validation_image]
DAMAGES += [damage_label_values, damage_label_size, damage_validation_labels]


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_broken_file_is_named(damage, workers, digits, tmp_path, capsys):
    root, config = digits
    path = damage(root)
    options = [f'{split}_dataloader.num_workers={workers}' for split in ('train', 'val')]
    args = ['--work-dir', tmp_path / 'work', '--cfg-options', *options, 'train_cfg.val_interval=2']
    message = tool_error(capsys, 'train', config, *args)
    assert path.stem in message and 'tools/check_dataset.py' in message


def test_a_broken_file_is_named_in_testing(digits, tmp_path, capsys):
    root, config = digits
    run_tool('train', config, '--work-dir', tmp_path / 'work')
    path = damage_validation_image(root)
    args = [config, tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'test']
    message = tool_error(capsys, 'test', *args)
    assert path.name in message and 'check_dataset' in message


def without(key):
    def edit(coco):
        for annotation in coco['annotations']:
            del annotation[key]

    return edit


def reuse_ids(coco):
    for annotation in coco['annotations']:
        annotation['id'] = 1


@pytest.mark.parametrize(
    'edit, words',
    [
        (without('area'), ['train data set', 'area']),
        (without('segmentation'), ['train2017', 'mask']),
        (reuse_ids, ['train data set', 'not unique']),
        (None, ['train data set', 'JSONDecodeError']),
    ],
    ids=['no area', 'no mask', 'ids used twice', 'broken JSON'],
)
def test_bad_annotations_are_named(edit, words, coco_root, tmp_path, capsys):
    root = tmp_path / 'coco'
    shutil.copytree(coco_root, root)
    path = root / 'annotations' / 'instances_train2017.json'
    if edit is None:
        path.write_text(path.read_text()[:-20])
    else:
        coco = json.loads(path.read_text())
        edit(coco)
        path.write_text(json.dumps(coco))
    args = ['--work-dir', tmp_path / 'work', *train_options(MASK_RCNN, root)]
    message = tool_error(capsys, 'train', MASK_RCNN, *args)
    assert all(word in message for word in [*words, 'check_dataset']), message


@pytest.mark.parametrize(
    'mode, name', [('L', 'grey.png'), ('RGBA', 'alpha.png'), ('CMYK', 'a.jpg')]
)
def test_images_of_other_kinds_train(mode, name, digits, tmp_path):
    root, config = digits
    folder = root / 'images' / 'training'
    for path in folder.iterdir():
        suffix = name.split('.')[1] if mode == 'CMYK' else path.suffix[1:]
        with Image.open(path) as image:
            converted = image.convert(mode)
        path.unlink()
        form = 'JPEG' if suffix in ('jpg', 'jpeg') else 'PNG'
        if form == 'JPEG' and mode == 'RGBA':
            form = 'PNG'  # a wrong extension, too
        converted.save(path, form)
    run_tool('train', config, '--work-dir', tmp_path / 'work')
    assert (tmp_path / 'work' / 'val_metrics.json').is_file()


def test_images_without_boxes_train(coco_root, tmp_path):
    root = tmp_path / 'coco'
    shutil.copytree(coco_root, root)
    path = root / 'annotations' / 'instances_train2017.json'
    coco = json.loads(path.read_text())
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] == 0]
    path.write_text(json.dumps(coco))
    options = train_options(MASK_RCNN, root)
    no_filter = 'train_dataloader.dataset.filter_cfg.filter_empty_gt=False'
    run_tool('train', MASK_RCNN, '--work-dir', tmp_path / 'work', *options, no_filter)
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()


def test_a_loss_that_is_not_finite_stops_the_run(digits, tmp_path, capsys):
    root, config = digits
    options = ['optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.clip_grad=None']
    options += ['train_cfg.max_iters=9', 'param_scheduler=[]']
    args = ['--work-dir', tmp_path / 'work', '--cfg-options', *options]
    message = tool_error(capsys, 'train', config, *args)
    assert re.search(r'not finite at iteration [2-4]: .*nan', message)
    names = [path.stem for path in (root / 'images' / 'training').iterdir()]
    assert sum(name in message for name in names) == 2  # the batch
    assert 'learning rate' in message and 'check_dataset' in message


def test_gradients_are_accumulated(digits, tmp_path):
    _, config = digits
    cfg = Config.fromfile(config)
    option = 'optim_wrapper.accumulative_counts=2'
    run_tool('train', config, '--work-dir', tmp_path / 'two', '--cfg-options', option)
    run_tool('train', config, '--work-dir', tmp_path / 'one')
    steps = []
    for name in ('one', 'two'):
        state = torch.load(tmp_path / name / 'iter_2.pth', weights_only=False)['optimizer']['state']
        steps.append(int(next(iter(state.values()))['step']))
    assert steps == [2, 1] and cfg.train_cfg.max_iters == 2


def test_nothing_is_run_through_a_shell():
    files = subprocess.run(['git', 'ls-files', '*.py'], cwd=ROOT, capture_output=True, text=True)
    folders = ('mmpoolformer', 'tools', 'benchmarks', 'dev')
    names = [n for n in files.stdout.split() if n.split('/')[0] in folders]
    for name in names:
        text = (ROOT / name).read_text()
        assert not re.search(r'shell=True|os\.system|(?<![.\w])eval\(|getoutput', text), name


def test_predictions_are_saved_inside_of_the_work_dir(coco_root, tmp_path):
    root = tmp_path / 'coco'
    shutil.copytree(coco_root, root)
    outside = tmp_path / 'outside.jpg'
    victim = next((root / 'val2017').iterdir())
    shutil.copy(victim, outside)
    path = root / 'annotations' / 'instances_val2017.json'
    coco = json.loads(path.read_text())
    for image in coco['images']:
        if image['file_name'] == victim.name:
            image['file_name'] = '../../outside.jpg'
    path.write_text(json.dumps(coco))
    before = outside.read_bytes()
    work = tmp_path / 'work'
    options = train_options(MASK_RCNN, root)
    run_tool('train', MASK_RCNN, '--work-dir', work, *options)
    files = set(tmp_path.rglob('*'))
    args = [MASK_RCNN, work / 'epoch_1.pth', '--work-dir', work, '--show-dir', 'shown', *options]
    run_tool('test', *args)
    assert outside.read_bytes() == before
    assert all(work in path.parents for path in set(tmp_path.rglob('*')) - files)


def test_frames_of_tracking_are_lists_of_images(tmp_path):
    (tmp_path / 'train').mkdir()
    images, annotations = [], []
    for k in (1, 2):
        Image.new('RGB', (96, 64)).save(tmp_path / 'train' / f'{k}.jpg')
        size = dict(height=64, width=96, file_name=f'{k}.jpg')
        images.append(dict(id=k, video_id=1, frame_id=k - 1, mot_frame_id=k, **size))
        box = dict(bbox=[10, 10, 30, 40], area=1200, iscrowd=False, category_id=1)
        mot = dict(mot_instance_id=1, mot_conf=1.0, mot_class_id=1, visibility=1.0)
        annotations.append(dict(id=k, image_id=k, video_id=1, instance_id=1, **box, **mot))
    categories, videos = (
        [dict(id=1, name='pedestrian')],
        [dict(id=1, name='v', width=96, height=64)],
    )
    content = dict(categories=categories, videos=videos, images=images, annotations=annotations)
    (tmp_path / 'tracks.json').write_text(json.dumps(content))
    name = 'mmdet::sort/sort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py'
    node = Config.fromfile(find_config(name)).test_dataloader.dataset
    node.update(data_root=str(tmp_path), ann_file='tracks.json')
    init_default_scope('mmdet')
    dataset = DATASETS.build(node)
    assert check_sample(dataset, 0) == []
    name_errors(dataset)
    assert dataset[(0, 1)]['inputs'].shape[0] == 1  # frames
    runner = mock.Mock(test_dataloader=mock.Mock(dataset=dataset))
    KeepApart('--show-dir', os.path.basename).before_test(runner)
