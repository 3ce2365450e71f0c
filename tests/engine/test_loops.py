"""Runs whose data give batches and whose metrics count every object."""

import json

import pytest
import torch
from helpers import tool_error, write_tiny_config
from mmdet.evaluation import CocoMetric

from mmpoolformer.engine.loops import count_every_object
from mmpoolformer.utils.errors import LaunchError


def score(folder, prepare=count_every_object, image_id=1, annotation_id=1, **fields):
    """The mAP of predictions that are the true box of one image."""
    box = [5.0, 5.0, 40.0, 30.0]
    annotation = dict(id=annotation_id, image_id=image_id, category_id=1, bbox=box, area=1200.0)
    content = dict(
        images=[dict(id=image_id, file_name='a.png', width=64, height=64)],
        annotations=[dict(annotation, **fields)],
        categories=[dict(id=1, name='a')],
    )
    (folder / 'truth.json').write_text(json.dumps(content))
    metric = CocoMetric(ann_file=str(folder / 'truth.json'))
    metric.dataset_meta = dict(classes=('a',))
    prepare(metric._coco_api)
    found = dict(
        bboxes=torch.tensor([[5.0, 5.0, 45.0, 35.0]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
    )
    metric.process({}, [dict(img_id=image_id, ori_shape=(64, 64), pred_instances=found)])
    return metric.evaluate(size=1)['coco/bbox_mAP']


@pytest.mark.parametrize('annotation_id', [0, 1])
@pytest.mark.parametrize('fields', [dict(), dict(iscrowd=0)], ids=str)
def test_every_object_is_counted(annotation_id, fields, tmp_path):
    assert score(tmp_path, annotation_id=annotation_id, **fields) == 1


def test_cocos_evaluation_does_not_count_id_0_by_itself(tmp_path):
    assert score(tmp_path, lambda truth: None, annotation_id=0, iscrowd=0) == 0


@pytest.mark.parametrize('ids', [dict(image_id=2**63), dict(annotation_id=2**53 + 1)], ids=str)
def test_ids_that_would_be_rounded_are_refused(ids, tmp_path):
    with pytest.raises(LaunchError, match=r'id \d+ is beyond 2\^53'):
        score(tmp_path, **ids)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_data_set_without_a_batch_is_refused(split, digits_root, tmp_path, capsys):
    config = write_tiny_config(tmp_path, 'by_epoch', digits_root, iters=2)
    options = [f'{split}_dataloader.batch_size=50', f'{split}_dataloader.drop_last=True']
    args = ['--work-dir', tmp_path / 'work', '--cfg-options', *options]
    assert f'{split}_dataloader' in tool_error(capsys, 'train', config, *args)
    assert not list((tmp_path / 'work').glob('*.pth'))
