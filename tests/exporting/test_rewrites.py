"""What stands in for parts of mmdet in a graph finds what mmdet finds."""

import pytest
import torch
from helpers import random_weights
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from tiny_models import save_tiny_model

from mmpoolformer.adapt.zoo import find_config, list_configs
from mmpoolformer.exporting import rewrites
from mmpoolformer.exporting.rewrites import for_graphs
from mmpoolformer.exporting.wrappers import Detector, Segmentor
from mmpoolformer.registry import build_model
from mmpoolformer.utils.errors import LaunchError

NMS = ConfigDict(type='nms', iou_threshold=0.5)


def boxes_and_scores(count=60, classes=3):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 80
    sides = 5 + torch.rand(count, 2, generator=generator) * 40
    scores = torch.rand(count, classes + 1, generator=generator)
    return torch.cat([corners, corners + sides], 1), scores


def test_the_best_pairs_of_box_and_class():
    from mmdet.models.utils import filter_scores_and_topk

    boxes, scores = boxes_and_scores()
    ours = rewrites.filter_scores_and_topk(scores, 0.6, 200, dict(boxes=boxes))
    theirs = filter_scores_and_topk(scores, 0.6, 200, dict(boxes=boxes))
    there = ours[0] > 0
    assert len(theirs[0]) == there.sum() < 200 == len(ours[0])
    torch.testing.assert_close(ours[0][there], theirs[0])
    assert torch.equal(ours[1][there], theirs[1])
    assert torch.equal(ours[3]['boxes'][there], theirs[3]['boxes'])


@pytest.mark.parametrize('limit', [-1, 7])
@pytest.mark.parametrize('boxes_of_classes', [1, 3])
def test_nms_of_several_classes(limit, boxes_of_classes):
    from mmdet.models.layers import multiclass_nms

    boxes, scores = boxes_and_scores()
    boxes = boxes.repeat(1, boxes_of_classes)
    ours, labels = rewrites.multiclass_nms(boxes, scores, 0.4, NMS, limit)
    theirs, their_labels = multiclass_nms(boxes, scores, 0.4, NMS, limit)
    there = ours[:, 4] > 0
    torch.testing.assert_close(ours[there], theirs)
    assert torch.equal(labels[there], their_labels)


@pytest.mark.parametrize('logit', [-60.0, -20.0, 0.0, 20.0])
def test_small_scores_stay_apart(logit):
    logits = torch.tensor([logit, logit + 1e-3])
    found = rewrites.sigmoid(logits)
    torch.testing.assert_close(found, logits.sigmoid(), rtol=1e-6, atol=0)


def test_an_nms_that_runtimes_do_not_have():
    boxes, scores = boxes_and_scores()
    with pytest.raises(LaunchError, match="nms='soft_nms'"):
        rewrites.multiclass_nms(boxes, scores, 0.4, ConfigDict(NMS, type='soft_nms'))


@pytest.mark.parametrize('option', [dict(max_num=2), dict(score_threshold=0.5), dict(offset=1)])
def test_options_of_nms_that_runtimes_do_not_have(option):
    boxes, scores = boxes_and_scores()
    with pytest.raises(LaunchError, match=next(iter(option))):
        rewrites.multiclass_nms(boxes, scores, 0.4, ConfigDict(NMS, **option))


def test_boxes_that_are_not_there_change_no_nms():
    from mmcv.ops import batched_nms

    boxes, scores = boxes_and_scores()
    labels, scores = torch.arange(len(boxes)) % 3, scores[:, 0]
    theirs, kept = batched_nms(boxes[1:], scores[1:], labels[1:], NMS)
    boxes, scores = boxes.clone(), scores.clone()
    boxes[0], scores[0] = 1e9, rewrites.NOT_THERE
    ours, order = rewrites.batched_nms(boxes, scores, labels, NMS)
    there = ours[:, 4] > 0
    torch.testing.assert_close(ours[there], theirs)
    assert torch.equal(order[there], kept + 1)
    assert len(ours) == len(boxes) and 0 not in order  # the best box fills up


def test_a_least_size_in_the_image_file_is_refused():
    model = model_of('retinanet/retinanet_r18_fpn_1x_', min_bbox_size=5)
    with pytest.raises(LaunchError, match='min_bbox_size=5'), torch.no_grad(), for_graphs():
        Detector(model)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_yolov3_finds_nothing():
    name = 'yolo/yolov3_mobilenetv2_8xb24-320'
    model = random_weights(model_of(name, conf_thr=0.9999, score_thr=0.0))
    with torch.no_grad(), for_graphs():
        boxes, scores, labels = Detector(model)(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert len(boxes) == len(scores) == len(labels) == 0


@pytest.fixture(scope='module', params=['retinanet', 'mask-rcnn', 'sem-fpn'])
def tiny(request, tmp_path_factory):
    config, checkpoint = save_tiny_model(tmp_path_factory.mktemp('tiny'), request.param)
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = build_model(cfg.model, cfg.default_scope).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    return cfg.default_scope, model


@pytest.mark.parametrize('size', [(96, 128), (75, 101)])
def test_whole_models_predict_the_same(tiny, size):
    scope, model = tiny
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)
    ours, theirs = predictions(scope, model, image)
    assert len(ours[0])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('score_thr', [0.0, 0.3])
@pytest.mark.parametrize('name', ['yolox/yolox_tiny', 'yolo/yolov3_mobilenetv2_8xb24-320'])
def test_yolo_predicts_the_same(name, score_thr):
    model = random_weights(model_of(name, score_thr=score_thr, conf_thr=0.01))
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=generator)
    ours, theirs = predictions('mmdet', model, image)
    assert len(ours[0])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-4)


def model_of(name, **test_cfg):
    """One of mmdet's models without weights; ``name`` is how its config's begins."""
    (name,) = [config for config in list_configs('mmdet') if config.startswith(f'mmdet::{name}')]
    cfg = Config.fromfile(find_config(name), import_custom_modules=False)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(test_cfg)
    init_default_scope('mmdet')
    return build_model(cfg.model, 'mmdet').eval()


@pytest.mark.parametrize('name', ['condinst/condinst_r50', 'rtmdet/rtmdet-ins_tiny'])
def test_masks_of_the_whole_image_are_refused(name):
    model = model_of(name)
    with pytest.raises(LaunchError, match='masks of the whole image'), torch.no_grad():
        Detector(model)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def predictions(scope, model, image):
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(image.shape[2:]))
    meta = dict(shapes, scale_factor=(1.0, 1.0), img_id=0)
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample

        wrapper = Detector(model)
    else:
        from mmseg.structures import SegDataSample as Sample

        wrapper = Segmentor(model)
    batch = dict(inputs=[image[0].flip(0)], data_samples=[Sample(metainfo=meta)])
    with torch.no_grad():
        with for_graphs():
            ours = wrapper(image)
        (sample,) = model.test_step(batch)
    if scope == 'mmseg':
        return ours, (sample.pred_sem_seg.data, sample.seg_logits.data[None])
    found = sample.pred_instances
    return ours[:3], (found.bboxes, found.scores, found.labels)


def test_the_toolboxes_are_as_they_were():
    from mmdet.models.dense_heads import rpn_head
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    before = rpn_head.batched_nms, BaseDenseHead._bbox_post_process
    with for_graphs():
        assert rpn_head.batched_nms is rewrites.batched_nms
    assert (rpn_head.batched_nms, BaseDenseHead._bbox_post_process) == before
