"""The guide to one's own data, command by command."""

import json
import re
import shlex

import pytest
from helpers import ROOT, run_tool, shell_commands
from mmengine.config import Config

GUIDE = (ROOT / 'docs' / 'guides' / 'own-data.md').read_text()
SHORT = {
    'my_mask-rcnn.py': [
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale="(64,64)"',
        'val_dataloader.dataset.pipeline.1.scale="(64,64)"',
        'model.test_cfg.rcnn.score_thr=0.0',
    ],
    'my_retinanet.py': [
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale="(64,64)"',
        'val_dataloader.dataset.pipeline.1.scale="(64,64)"',
        'model.test_cfg.score_thr=0.0',
    ],
    'my_sem-fpn.py': [
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.dataset.pipeline.2.scale="(64,64)"',
        'train_dataloader.dataset.pipeline.3.crop_size="(64,64)"',
        'val_dataloader.dataset.pipeline.1.scale="(64,64)"',
        'model.data_preprocessor.size="(64,64)"',
    ],
}


def commands(heading):
    section = GUIDE.split(f'## {heading}\n')[1].split('\n## ')[0]
    return [shlex.split(line) for line in shell_commands(section)]


def run_guide(heading, folder, monkeypatch):
    """Run the commands of a section as written; the training is made short."""
    monkeypatch.chdir(folder)
    for python, script, *arguments in commands(heading):
        assert python == 'python'
        name = script.removeprefix('tools/').removesuffix('.py')
        if name == 'use_dataset':
            arguments[0] = str(next(iter(ROOT.glob(f'configs/*/{arguments[0]}')), arguments[0]))
        if name == 'train':
            config = arguments[0]
            options = [*SHORT[config], 'model.backbone.init_cfg=None']
            for split in ('train', 'val'):
                loader = f'{split}_dataloader'
                options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
            arguments += ['--cfg-options', *options]
        if name == 'check_dataset':
            arguments += ['--workers', '0']
        run_tool(name, *arguments)


def test_boxes_and_masks(own_coco, monkeypatch):
    (own_coco / 'all.json').rename(own_coco / 'annotations.json')
    run_guide('Boxes and masks', own_coco, monkeypatch)
    cfg = Config.fromfile(own_coco / 'my_mask-rcnn.py')
    assert cfg.model.backbone.type == 'PoolFormer'
    assert len(json.loads((own_coco / 'annotations_val.json').read_text())['images']) == 2
    metrics = json.loads((own_coco / 'work_dirs' / 'my_mask-rcnn' / 'val_metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


def test_pascal_voc_and_yolo(own_coco, monkeypatch):
    pytest.importorskip('globox')
    (own_coco / 'labels').mkdir()
    for image in (own_coco / 'images').iterdir():
        boxes = ''.join(f'{k} {(20 * k + 10) / 64} 0.35 0.3125 0.55\n' for k in range(3))
        (own_coco / 'labels' / f'{image.stem}.txt').write_text(boxes)
    (own_coco / 'classes.txt').write_text('screw\nnut\nwasher\n')
    run_guide('Pascal VOC and YOLO', own_coco, monkeypatch)
    cfg = Config.fromfile(own_coco / 'my_retinanet.py')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('screw', 'nut', 'washer')
    work = own_coco / 'work_dirs' / 'my_retinanet'
    assert 'coco/bbox_mAP' in json.loads((work / 'val_metrics.json').read_text())


def test_a_label_for_each_pixel(own_label_maps, monkeypatch):
    run_guide('A label for each pixel', own_label_maps, monkeypatch)
    work = own_label_maps / 'work_dirs' / 'my_sem-fpn'
    assert 'mIoU' in json.loads((work / 'val_metrics.json').read_text())


def test_in_python(own_coco, monkeypatch):
    (own_coco / 'all.json').rename(own_coco / 'annotations.json')
    monkeypatch.chdir(own_coco)
    base = ROOT / 'configs' / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
    Config.fromfile(base).dump('my_config.py')
    (code,) = re.findall(r'```python\n(.*?)```', GUIDE, flags=re.S)
    exec(code, {})
    assert Config.fromfile('my_config_own.py').model.bbox_head.num_classes == 3
