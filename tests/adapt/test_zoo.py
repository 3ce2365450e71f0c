"""PoolFormer in the place of other backbones, over the zoo of both toolboxes."""

import copy
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT, load_tool
from mmdet.models.utils import vlfuse_helper
from mmengine.registry import init_default_scope
from zoo_configs import (
    BISENET,
    DEEPLABV3PLUS,
    DETR,
    FASTER_RCNN_C4,
    FASTFCN,
    ICNET,
    MASK_RCNN,
    PSPNET,
    RETINANET,
    STDC,
    UPERNET,
    YOLOX,
    read,
)

from mmpoolformer import PoolFormer, SwapError, swap_backbone
from mmpoolformer.adapt.zoo import config_folder, list_configs
from mmpoolformer.registry import TOOLBOXES


@pytest.fixture(scope='module')
def zoo_report():
    """The functions of the report on the zoo."""
    return load_tool('zoo')


# The first config of each of these folders is refused for this part of it.
REFUSED_METHODS = {
    'mmdet::centripetalnet': 'stride 4, 4,',
    'mmdet::common': 'no model',
    'mmdet::cornernet': 'stride 4, 4,',
    'mmdet::detectors': 'stride 1, 4, 8, 16, 32',
    'mmdet::misc': 'Detectron2Wrapper',
    'mmdet::reid': 'BaseReID',
    'mmdet::tridentnet': 'maps of 6 images for 2',
    'mmseg::beit': 'BEiT',
    'mmseg::bisenetv2': 'stride 8, 4, 8, 16, 32',
    'mmseg::ddrnet': 'stride 8, 8 in training and 8 in testing',
    'mmseg::dpt': 'VisionTransformer',
    'mmseg::erfnet': 'coarser than stride 2',
    'mmseg::fastscnn': 'stride 8, 32, 8',
    'mmseg::mae': 'MAE',
    'mmseg::mobilenet_v3': 'LRASPPHead',
    'mmseg::pidnet': 'in training',
    'mmseg::san': 'MultimodalEncoderDecoder',
    'mmseg::segmenter': 'VisionTransformer',
    'mmseg::setr': 'VisionTransformer',
    'mmseg::unet': 'stride 16, 8, 4, 2, 1',
    'mmseg::vit': 'VisionTransformer',
    'mmseg::vpd': 'VPD',
}
# These take PoolFormer and need a package that is not installed.
UNBUILDABLE_METHODS = {
    method: package
    for method, package in {
        'mmdet::bytetrack': 'lap',
        'mmdet::deepsort': 'mmpretrain',
        'mmdet::ocsort': 'lap',
        'mmdet::strongsort': 'mmpretrain',
    }.items()
    if find_spec(package) is None
}
if vlfuse_helper.BertPreTrainedModel is object:  # what it imports went with transformers 5
    UNBUILDABLE_METHODS['mmdet::glip'] = 'object.__init__'


def first_of_each_method():
    methods = {}
    for toolbox in TOOLBOXES:
        for name in list_configs(toolbox):
            if name.count('/') == 1:
                methods.setdefault(name.split('/')[0], name)
    return methods


METHODS = first_of_each_method()
BUILDABLE_METHODS = [m for m in METHODS if m not in {**REFUSED_METHODS, **UNBUILDABLE_METHODS}]


@pytest.mark.parametrize('method', BUILDABLE_METHODS)
def test_one_config_of_each_method_builds(method, zoo_report, monkeypatch):
    # A distilled model reads its teacher's config from there.
    monkeypatch.chdir(config_folder(method.split('::')[0]).parent)
    cfg = zoo_report['small'](swap_backbone(read(METHODS[method]), checkpoint=None))
    assert any(isinstance(module, PoolFormer) for module in build(cfg).modules())


@pytest.mark.parametrize('method', [m for m in REFUSED_METHODS if m in METHODS])
def test_one_config_of_each_method_is_refused_with_the_reason(method):
    with pytest.raises(SwapError, match=REFUSED_METHODS[method]):
        swap_backbone(read(METHODS[method]))


@pytest.mark.parametrize('method', [m for m in UNBUILDABLE_METHODS if m in METHODS])
def test_one_config_of_each_method_lacks_nothing_but_other_packages(method, zoo_report):
    cfg = zoo_report['small'](swap_backbone(read(METHODS[method]), checkpoint=None))
    with pytest.raises((KeyError, RuntimeError, TypeError), match=UNBUILDABLE_METHODS[method]):
        build(cfg)


def build(cfg):
    """Build on the meta device, without memory and arithmetic, where the model allows it."""
    init_default_scope(cfg.default_scope)
    import_module(f'{cfg.default_scope}.datasets')  # one of them has a data preprocessor
    registry = import_module(f'{cfg.default_scope}.registry').MODELS
    try:
        with torch.device('meta'):
            return registry.build(copy.deepcopy(cfg.model))  # some take their config apart
    except (RuntimeError, NotImplementedError):  # it computes while it is built
        return registry.build(copy.deepcopy(cfg.model))


@pytest.mark.parametrize(
    'name',
    [
        FASTER_RCNN_C4,
        MASK_RCNN,
        RETINANET,
        DETR,
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        'mmdet::tood/tood_r50_fpn_1x_coco.py',
        PSPNET,
        DEEPLABV3PLUS,
        UPERNET,
        FASTFCN,
        YOLOX,
        'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        'mmdet::yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py',
        BISENET,
        STDC,
        ICNET,
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_a_swapped_model_runs_and_trains(name, zoo_report, monkeypatch):
    monkeypatch.chdir(ROOT)  # the step changes the folder
    zoo_report['exercise'](swap_backbone(read(name), checkpoint=None), train=True)
