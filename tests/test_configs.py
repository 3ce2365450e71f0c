"""The published configs: they build, and carry the published recipe."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ALL_CONFIGS, DIGITS, FAMILY, PUBLISHED
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mmpoolformer import ARCHS, METAFORMERS
from mmpoolformer.archs import official_weights

OFFICIAL = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/{}.pth.tar'


def by_name(configs):
    return pytest.mark.parametrize('config', configs, ids=lambda path: path.stem)


def config_arch(config):
    return config.stem.split('_')[1].replace('-', '_')


def build(cfg):
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_the_eleven_published_configs_exist():
    detection = {
        f'{method}_poolformer-{arch}_fpn_1x_coco'
        for method in ('retinanet', 'mask-rcnn')
        for arch in ('s12', 's24', 's36')
    }
    segmentation = {f'sem-fpn_poolformer-{arch}_8xb4-40k_ade20k-512x512' for arch in ARCHS}
    assert {path.stem for path in PUBLISHED} == detection | segmentation


@by_name(ALL_CONFIGS)
def test_model_builds_with_its_arch_and_without_idle_parts(config):
    model = build(Config.fromfile(config))
    arch = METAFORMERS[config_arch(config)]
    assert model.backbone.arch == arch
    # Every stage that is returned has its own lateral convolution, and none is left over.
    channels = [conv.conv.in_channels for conv in model.neck.lateral_convs]
    assert channels == [arch.embed_dims[i] for i in model.backbone.out_indices]


@by_name(PUBLISHED)
def test_backbone_starts_from_the_official_weights(config):
    init_cfg = Config.fromfile(config).model.backbone.init_cfg
    assert init_cfg == dict(type='Pretrained', checkpoint=OFFICIAL.format(config_arch(config)))


@by_name(ALL_CONFIGS)
def test_config_needs_no_other_package_and_imports_mmpoolformer(config):
    cfg = Config.fromfile(config)
    assert cfg.custom_imports.imports == ['mmpoolformer']
    assert '::' not in cfg.text


@by_name([path for path in PUBLISHED if path.parent.name == 'detection'])
def test_detection_recipe(config):
    cfg = Config.fromfile(config)
    retinanet = config.stem.startswith('retinanet')
    assert cfg.default_scope == 'mmdet'
    assert cfg.train_cfg.max_epochs == 12 and cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 500, False)
    assert (steps.milestones, steps.gamma) == ([8, 11], 0.1)
    optimizer = dict(type='AdamW', lr=1e-4 if retinanet else 2e-4, weight_decay=1e-4)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
    resize = next(t for t in cfg.train_pipeline if t.type == 'Resize')
    assert tuple(resize.scale) == (1333, 800) and resize.keep_ratio
    assert next(t for t in cfg.train_pipeline if t.type == 'RandomFlip').prob == 0.5
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    assert cfg.val_evaluator.metric == ('bbox' if retinanet else ['bbox', 'segm'])
    assert min(cfg.model.backbone.get('out_indices', range(4))) == (1 if retinanet else 0)
    assert (cfg.model.neck.out_channels, cfg.model.neck.num_outs) == (256, 5)
    assert cfg.model.neck.get('add_extra_convs') == ('on_input' if retinanet else None)


@by_name([path for path in PUBLISHED if path.parent.name == 'segmentation'])
def test_segmentation_recipe(config):
    cfg = Config.fromfile(config)
    assert cfg.default_scope == 'mmseg'
    assert cfg.train_cfg.max_iters == 40_000 and cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.train_dataloader.batch_size == 4 and cfg.train_dataloader.dataset.times == 50
    (poly,) = cfg.param_scheduler
    assert (poly.type, poly.power, poly.eta_min, poly.begin) == ('PolyLR', 0.9, 0.0, 0)
    optimizer = dict(type='AdamW', lr=2e-4, weight_decay=1e-4)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
    resize, crop = cfg.train_pipeline[2:4]
    assert tuple(resize.scale) == (2048, 512) and tuple(resize.ratio_range) == (0.5, 2.0)
    assert tuple(crop.crop_size) == (512, 512) and crop.cat_max_ratio == 0.75
    types = [transform.type for transform in cfg.test_pipeline]
    assert types == [
        'LoadImageFromFile',
        'Resize',
        'ResizeToMultiple',
        'LoadAnnotations',
        'PackSegInputs',
    ]
    assert cfg.test_pipeline[2].size_divisor == 32
    head = cfg.model.decode_head
    assert (head.channels, head.dropout_ratio, head.num_classes) == (128, 0.1, 150)
    assert head.norm_cfg.type == 'SyncBN'
    root = 'data/ade/ADEChallengeData2016'
    assert cfg.train_dataloader.dataset.dataset.data_root == root


def leaves(node, path=()):
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in leaves(child, (*path, key)).items()}
    return {path: node}


@by_name([path for path in PUBLISHED if 's12' not in path.name] + FAMILY)
def test_a_variant_holds_only_what_differs(config):
    own = {k: v for k, v in runpy.run_path(str(config)).items() if not k.startswith('__')}
    base = config.parent / own.pop('_base_')
    inherited = leaves(Config.fromfile(base).to_dict())
    assert own and all(value != inherited[path] for path, value in leaves(own).items())


@by_name([path for path in ALL_CONFIGS if path.parent.name == 'segmentation'])
def test_label_0_is_ignored_and_label_1_is_the_first_class(config, ade_root, digits_root):
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    dataset = cfg.val_dataloader.dataset
    dataset.data_root = str(digits_root if config in DIGITS else ade_root)
    sample = DATASETS.build(dataset)[0]
    labels = sample['data_samples'].gt_sem_seg.data.squeeze()
    name = Path(sample['data_samples'].seg_map_path)
    original = torch.from_numpy(np.array(Image.open(name))).long()
    assert torch.equal(labels.long(), torch.where(original == 0, 255, original - 1))


@pytest.mark.parametrize(
    'config', [path for path in FAMILY if path not in DIGITS], ids=lambda path: path.stem
)
def test_config_starts_from_the_official_weights(config):
    backbone = Config.fromfile(config).model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=official_weights(backbone.arch))
