"""Toolboxes beyond mmdet and mmseg find the backbones in mmengine's own registry.

They are skipped where they are not installed: mmpose, onedl-mmrotate and what they need.
"""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

import mmpoolformer

pytestmark = pytest.mark.long
BACKBONE = dict(type='PoolFormer', arch='s12')


def train_a_step(toolbox, model, packed):
    """One step of training, in the scope of a toolbox."""
    with DefaultScope.overwrite_default_scope(toolbox):
        data = model.train().data_preprocessor(packed, training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    optimizer = torch.optim.SGD(model.backbone.parameters(), 1e-6)
    before = model.backbone.patch_embed.proj.weight.clone()
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and type(model.backbone) is mmpoolformer.PoolFormer
    assert not torch.equal(model.backbone.patch_embed.proj.weight, before)


def test_mmpose():
    pytest.importorskip('mmpose')
    from mmpose.registry import MODELS
    from mmpose.testing import get_packed_inputs

    folder = 'mmpose::body_2d_keypoint/topdown_heatmap/coco'
    cfg = get_config(f'{folder}/td-hm_res50_8xb64-210e_coco-256x192.py')
    cfg.model.backbone = dict(BACKBONE, out_indices=(3,))
    cfg.model.head.in_channels = 512
    with DefaultScope.overwrite_default_scope('mmpose'):
        model = MODELS.build(cfg.model)
    train_a_step('mmpose', model, get_packed_inputs(2))


def test_mmrotate():
    pytest.importorskip('mmrotate')
    from mmrotate.registry import MODELS
    from mmrotate.testing import demo_mm_inputs

    cfg = get_config('mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py')
    cfg.model.backbone = BACKBONE
    cfg.model.neck.in_channels = [64, 128, 320, 512]
    with DefaultScope.overwrite_default_scope('mmrotate'):
        model = MODELS.build(cfg.model)
    images = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=15, use_box_type=True)
    train_a_step('mmrotate', model, images)
