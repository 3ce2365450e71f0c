"""PoolFormer in the place of other backbones, rule by rule."""

import copy
from importlib import import_module

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from zoo_configs import (
    BISENET,
    CONVNEXT,
    DEEPLABV3PLUS,
    DETR,
    FASTER_RCNN,
    FASTER_RCNN_C4,
    FASTFCN,
    ICNET,
    MASK2FORMER_SWIN,
    MASK_RCNN,
    PSPNET,
    QDTRACK,
    RETINANET,
    RTMDET,
    SEMANTIC_FPN,
    SSD,
    STDC,
    UPERNET,
    YOLOX,
    read,
)

from mmpoolformer import ARCHS, METAFORMERS, SwapError, swap_backbone, swap_changes
from mmpoolformer.adapt.swap import REFUSED
from mmpoolformer.adapt.swap.strides import documented_strides
from mmpoolformer.archs import VARIANTS
from mmpoolformer.utils.config_tree import walk
from mmpoolformer.utils.errors import LaunchError


def entry(cfg, path):
    for key in path.split('.'):
        cfg = cfg[int(key)] if key.isdigit() else cfg.get(key)
    return cfg


def leaves(node, path=()):
    if isinstance(node, (dict, list, tuple)) and node:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, child in items for k, v in leaves(child, (*path, str(key))).items()}
    return {path: node}


# What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, expected',
    [
        (FASTER_RCNN, {'backbone.out_indices': None, 'neck.in_channels': [64, 128, 320, 512]}),
        # Its neck skips the first map: a norm without gradient would stop several processes.
        (
            RETINANET,
            {
                'backbone.out_indices': [1, 2, 3],
                'neck.in_channels': [128, 320, 512],
                'neck.start_level': 0,
            },
        ),
        (DETR, {'backbone.out_indices': [3], 'neck.in_channels': [512]}),
        (
            'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            {'backbone.out_indices': [1, 2, 3], 'neck.in_channels': [128, 320, 512]},
        ),
        (
            'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
            {'backbone.out_indices': [3], 'neck.in_channels': 512},
        ),
        (
            'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
            {'backbone.out_indices': [3], 'neck.in_channels': 512},
        ),
        (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            {'backbone.out_indices': None, 'panoptic_head.in_channels': [64, 128, 320, 512]},
        ),
        # Its neck skips the first map, and yet counts on it.
        (
            'mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py',
            {
                'backbone.out_indices': None,
                'neck.in_channels': [64, 128, 320, 512],
                'neck.start_level': 1,
            },
        ),
        (YOLOX, {'backbone.out_indices': [1, 2, 3], 'neck.in_channels': [128, 320, 512]}),
        (
            'mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py',
            {'backbone.out_indices': [1, 2, 3], 'neck.in_channels': [128, 320, 512]},
        ),
        # Its neck lists the deepest map first.
        (
            'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
            {'backbone.out_indices': [1, 2, 3], 'neck.in_channels': [512, 320, 128]},
        ),
        # A neck before the neck makes the map of stride 64.
        (
            'mmdet::rtmdet/rtmdet_x_p6_4xb8-300e_coco.py',
            {
                'backbone.out_indices': [1, 2, 3],
                'neck.0.in_channels': [128, 320, 512],
                'neck.0.num_outs': 4,
                'neck.1.type': 'CSPNeXtPAFPN',
                'neck.1.in_channels': [512, 512, 512, 512],
            },
        ),
        # The backbone inside of another one, and the modules around it.
        (
            BISENET,
            {
                'backbone.backbone_cfg.type': 'PoolFormer',
                'backbone.context_channels': [160, 320, 512],
                'backbone.spatial_channels': [64, 64, 64, 160],
                'decode_head.in_channels': 256,
                'auxiliary_head.0.in_channels': 160,
                'auxiliary_head.1.in_channels': 160,
            },
        ),
        (
            STDC,
            {
                'backbone.backbone_cfg.out_indices': [1, 2, 3],
                'backbone.last_in_channels': [512, 320],
                'backbone.ffm_cfg.in_channels': 128 + 128,
                'auxiliary_head.2.in_channels': 128,
                'auxiliary_head.1.in_channels': 128,
            },
        ),
        (ICNET, {'backbone.out_indices': [1, 2, 3], 'neck.in_channels': [128, 320, 512]}),
        # Its head has no convolutions: it is as wide as what it reads.
        (
            'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
            {'decode_head.in_channels': 512, 'decode_head.channels': 512},
        ),
        # One map at stride 16 for heads of fixed width.
        (
            FASTER_RCNN_C4,
            {
                'backbone.out_indices': [2],
                'neck.in_channels': [320],
                'neck.out_channels': 1024,
                'rpn_head.in_channels': 1024,
            },
        ),
        (
            SSD,
            {
                'backbone.out_indices': [1, 2],
                'neck.in_channels': [128, 320],
                'neck.out_channels': [128, 320, 512, 256, 256, 256],
                'bbox_head.in_channels': [128, 320, 512, 256, 256, 256],
            },
        ),
        (
            PSPNET,
            {
                'backbone.out_indices': [2, 3],
                'decode_head.in_channels': 512,
                'decode_head.in_index': 1,
                'auxiliary_head.in_channels': 320,
                'auxiliary_head.in_index': 0,
            },
        ),
        (
            DEEPLABV3PLUS,
            {
                'backbone.out_indices': [0, 2, 3],
                'decode_head.in_channels': 512,
                'decode_head.in_index': 2,
                'decode_head.c1_in_channels': 64,
                'auxiliary_head.in_index': 1,
            },
        ),
        (
            UPERNET,
            {
                'backbone.out_indices': None,
                'decode_head.in_channels': [64, 128, 320, 512],
                'auxiliary_head.in_channels': 320,
                'auxiliary_head.in_index': 2,
            },
        ),
        (
            FASTFCN,
            {
                'backbone.out_indices': [1, 2, 3],
                'neck.in_channels': [128, 320, 512],
                'decode_head.in_channels': 2048,
                'auxiliary_head.in_channels': 320,
            },
        ),
        (
            'mmseg::knet/knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512.py',
            {
                'decode_head.kernel_generate_head.in_channels': 512,
                'decode_head.kernel_generate_head.in_index': 1,
                'decode_head.kernel_update_head.0.in_channels': 512,
                'auxiliary_head.in_channels': 320,
            },
        ),
        (
            'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
            {'backbone.out_indices': None, 'decode_head.1.in_channels': [64, 128, 320, 512]},
        ),
        (
            'mmseg::ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
            {
                'backbone.out_indices': [3],  # both heads need maps of one size
                'decode_head.0.in_channels': 512,
                'decode_head.1.in_channels': 512,
            },
        ),
        (
            'mmseg::encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            {
                'backbone.out_indices': [2, 3],
                'decode_head.in_channels': [512],
                'decode_head.in_index': [1],
                'auxiliary_head.in_index': 0,
            },
        ),
    ],
)
def test_necks_and_heads_get_the_stages_they_read(name, expected):
    model = swap_backbone(read(name)).model
    inner = model.backbone.get('backbone_cfg', model.backbone)
    assert inner.type == 'PoolFormer'
    for path, value in expected.items():
        found = entry(model, path)
        assert (list(found) if isinstance(found, tuple) else found) == value, path


@pytest.mark.parametrize('arch', ARCHS)
def test_channels_are_those_of_the_arch(arch):
    cfg = swap_backbone(read(FASTER_RCNN), arch)
    assert cfg.model.backbone.arch == arch
    assert cfg.model.neck.in_channels == list(ARCHS[arch].embed_dims)


def test_backbone_inside_of_a_tracker():
    cfg = swap_backbone(read(QDTRACK))
    assert cfg.model.detector.backbone.type == 'PoolFormer'
    assert cfg.model.detector.neck.in_channels == [64, 128, 320, 512]
    assert not cfg.model.detector.get('init_cfg')  # weights of a ResNet detector


class TwoMaps(torch.nn.Module):
    """A backbone of the user's own, with maps of stride 8 and 32."""

    def forward(self, x):
        return x[:, :, ::8, ::8], x[:, :, ::32, ::32]


@pytest.fixture
def two_maps():
    registry = import_module('mmdet.registry').MODELS
    registry.register_module('TwoMaps', module=TwoMaps)
    yield
    registry._module_dict.pop('TwoMaps')


def test_strides_of_an_unknown_backbone_are_measured(two_maps):
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.model.backbone = dict(type='TwoMaps')
    cfg.model.neck.in_channels = [3, 3]
    cfg = swap_backbone(cfg)
    assert cfg.model.backbone.out_indices == (1, 3)
    assert cfg.model.neck.in_channels == [128, 512]


def test_a_backbone_is_measured_without_its_weights():
    """Those of timm would be downloaded when it is built."""
    cfg = Config(read(DEEPLABV3PLUS).to_dict())
    cfg.model.backbone = dict(
        type='TIMMBackbone', model_name='resnet18', pretrained=True, features_only=True,
        out_indices=(1, 2, 3, 4),
    )  # fmt: skip
    cfg.model.decode_head.update(c1_in_channels=64, in_channels=512)
    cfg.model.auxiliary_head.in_channels = 256
    model = swap_backbone(cfg).model
    assert (model.decode_head.c1_in_channels, model.decode_head.in_channels) == (64, 512)


@pytest.mark.parametrize(
    'kind, indices, strides',
    [
        ('PoolFormer', (0, 2, 4, 6), (4, 8, 16, 32)),
        ('SwinTransformer', (0, 1, 2, 3), (4, 8, 16, 32)),
        ('ConvNeXt', (-1,), (32,)),
        ('ConvNeXt', 2, (16,)),
        ('TIMMBackbone', (1, 2, 3, 4), (4, 8, 16, 32)),
        ('ResNet', (0, 1), None),
        ('PoolFormer', None, None),
    ],
)
def test_strides_of_packages_that_are_not_installed(kind, indices, strides):
    assert documented_strides(kind, dict(out_indices=indices)) == strides


def test_dilated_maps_are_matched_by_their_depth():
    cfg = Config(read(DEEPLABV3PLUS).to_dict())
    cfg.model.backbone.out_indices = (0, 3)  # strides 4 and 8
    cfg.model.decode_head.in_index = 1
    cfg.model.auxiliary_head = None
    model = swap_backbone(cfg).model
    assert model.backbone.out_indices == (0, 3)
    assert (model.decode_head.c1_in_channels, model.decode_head.in_channels) == (64, 512)


@pytest.mark.parametrize('key, value', [('with_cp', True), ('in_channels', 4)])
def test_arguments_of_the_old_backbone_that_mean_the_same_stay(key, value):
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.model.backbone[key] = value
    assert swap_backbone(cfg).model.backbone[key] == value


def test_backbone_arguments_are_passed_on():
    backbone = swap_backbone(read(FASTER_RCNN), drop_path_rate=0.1).model.backbone
    assert backbone.drop_path_rate == 0.1


# What belongs to the weights -----------------------------------------------------------------


@pytest.mark.parametrize(
    'checkpoint, expected',
    [
        (
            'official',
            'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s24.pth.tar',
        ),
        ('weights/own.pth', 'weights/own.pth'),
    ],
)
def test_backbone_starts_from_the_checkpoint(checkpoint, expected):
    backbone = swap_backbone(read(FASTER_RCNN), 's24', checkpoint).model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=expected)


@pytest.mark.parametrize('variant', VARIANTS)
def test_backbone_starts_from_other_published_weights(variant):
    cfg = swap_backbone(read(FASTER_RCNN), 'caformer_s18', f'official:{variant}')
    assert cfg.model.backbone.init_cfg.checkpoint == (
        f'https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18_{variant}.pth'
    )


@pytest.mark.parametrize(
    'arch, checkpoint, words',
    [
        ('s12', 'official:in21k', ['poolformer_s12', 'in21k', 'convformer or caformer']),
        ('poolformerv2_s12', 'official:384', ['poolformerv2_s12', "checkpoint='official'"]),
        ('caformer_s18', 'official:in22k', ['official:in22k', 'official:in21k']),
        ('caformer_s18', 'official:', ['official:384_in21ft1k']),
        (METAFORMERS['caformer_s18'], 'official:in21k', ['official:in21k', 'checkpoint=None']),
    ],
)
def test_weights_that_are_not_published_are_refused(arch, checkpoint, words):
    with pytest.raises(ValueError) as error:
        swap_backbone(read(FASTER_RCNN), arch, checkpoint)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('name', [FASTER_RCNN, PSPNET])
def test_without_a_checkpoint_nothing_is_loaded(name):
    model = swap_backbone(read(name), checkpoint=None).model
    assert not model.get('pretrained') and 'init_cfg' not in model.backbone


def test_weights_of_the_whole_old_model_are_not_loaded():
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.load_from = 'faster_rcnn_r50.pth'
    assert swap_backbone(cfg).load_from is None


@pytest.mark.parametrize(
    'name',
    [
        FASTER_RCNN_C4,
        'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    ],
)
def test_images_are_normalised_for_the_new_weights(name):
    found = [node for _, node in walk(swap_backbone(read(name)).model) if 'mean' in node]
    assert found
    for node in found:
        assert (node.mean, node.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        assert node.bgr_to_rgb and not node.get('rgb_to_bgr')


IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
PLAIN = dict(type='DetDataPreprocessor', pad_size_divisor=32)


def with_images(preprocessor, *transforms, loader=dict(type='LoadImageFromFile')):
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.model.data_preprocessor = preprocessor
    pipeline = [loader, *transforms, dict(type='PackDetInputs')]
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline = pipeline
    dataset = cfg.test_dataloader.dataset.to_dict()
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    return cfg


RGB_TIFF = dict(type='LoadImageFromFile', imdecode_backend='tifffile')


@pytest.mark.parametrize('to_rgb', [True, False])
@pytest.mark.parametrize('later', [dict(), dict(bgr_to_rgb=True)], ids=str)
def test_images_normalised_in_the_pipeline(to_rgb, later):
    normalize = dict(type='Normalize', to_rgb=to_rgb and not later, **CAFFE)
    cfg = swap_backbone(with_images(dict(PLAIN, **later), normalize))
    sets = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')]
    for dataset in (*sets, *cfg.test_dataloader.dataset.datasets):
        assert dataset.pipeline[1] == dict(type='Normalize', to_rgb=True, **IMAGENET)
    assert not cfg.model.data_preprocessor.get('bgr_to_rgb')
    assert 'mean' not in cfg.model.data_preprocessor


@pytest.mark.parametrize(
    'preprocessor',
    [dict(mean=[0.0], std=[1.0]), dict(mean=0.0, std=255.0), dict(mean=None), dict()],
    ids=str,
)
def test_images_without_a_normalisation_of_three_channels(preprocessor):
    found = swap_backbone(with_images(dict(PLAIN, **preprocessor))).model.data_preprocessor
    assert dict(found) == dict(PLAIN, bgr_to_rgb=True, **IMAGENET)


@pytest.mark.parametrize(
    'preprocessor, transforms',
    [
        (dict(PLAIN, rgb_to_bgr=True, **CAFFE), ()),
        (dict(PLAIN, mean=[120.0, 110.0, 100.0], std=[1.0] * 3), ()),
        (PLAIN, [dict(type='Normalize', to_rgb=False, **IMAGENET)]),
    ],
    ids=['turned', 'order of the mean', 'transform'],
)
def test_images_that_are_loaded_as_rgb_stay_rgb(preprocessor, transforms):
    cfg = swap_backbone(with_images(preprocessor, *transforms, loader=RGB_TIFF))
    found = cfg.train_dataloader.dataset.pipeline[1] if transforms else cfg.model.data_preprocessor
    assert (found.mean, found.std) == tuple(IMAGENET.values())
    assert not any(found.get(key) for key in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'))


@pytest.mark.parametrize(
    'preprocessor, transforms, loader, words',
    [
        (None, [], dict(type='LoadImageFromFile'), 'no data_preprocessor'),
        (
            dict(PLAIN, **CAFFE),
            [dict(type='Normalize', **CAFFE)],
            dict(type='LoadImageFromFile'),
            'data_preprocessor and in Normalize',
        ),
        (PLAIN, [dict(type='Albu', transforms=[dict(type='Normalize')])], RGB_TIFF, 'Albu'),
        (dict(PLAIN, mean=[0.0] * 3), [], dict(type='LoadOwnImage'), 'LoadOwnImage gives RGB or'),
        (dict(PLAIN, **IMAGENET), [], dict(type='LoadImageFromFile'), 'which nothing turns'),
        (
            dict(PLAIN, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], bgr_to_rgb=True),
            [],
            dict(type='LoadImageFromFile'),
            'another range than 0 to 255',
        ),
        (
            PLAIN,
            [dict(type='Normalize', mean=[1200.0] * 3, std=[400.0] * 3)],
            dict(type='LoadImageFromFile'),
            'another range than 0 to 255',
        ),
    ],
)
def test_images_of_unknown_normalisation_are_refused(preprocessor, transforms, loader, words):
    with pytest.raises(SwapError, match=f'{words}.*bgr_to_rgb=True'):
        swap_backbone(with_images(preprocessor, *transforms, loader=loader))


def test_without_weights_images_are_normalised_as_before():
    cfg = swap_backbone(read(FASTER_RCNN_C4), checkpoint=None)
    assert cfg.model.data_preprocessor == read(FASTER_RCNN_C4).model.data_preprocessor


@pytest.mark.parametrize('split', ['val', 'test'])
def test_segmentors_round_test_images_to_the_stride(split):
    pipeline = swap_backbone(read(SEMANTIC_FPN))[f'{split}_dataloader'].dataset.pipeline
    kinds = [transform.type for transform in pipeline]
    assert kinds[1:4] == ['Resize', 'ResizeToMultiple', 'LoadAnnotations']
    assert pipeline[2].size_divisor == 32


def test_test_sets_in_a_wrapper_are_rounded_too():
    cfg = Config(read(SEMANTIC_FPN).to_dict())
    dataset = cfg.test_dataloader.dataset.to_dict()
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    for dataset in swap_backbone(cfg).test_dataloader.dataset.datasets:
        assert [step.type for step in dataset.pipeline][1:3] == ['Resize', 'ResizeToMultiple']


@pytest.mark.parametrize('arch', ['s12', 'caformer_s18'])
def test_norms_without_weight_decay_stay_so(arch):
    cfg = swap_backbone(read(MASK2FORMER_SWIN), arch, checkpoint=None)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert not any('stages' in key or 'relative' in key for key in keys)
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=MODELS.build(cfg.model.backbone)))
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    found = {id(p): group for group in groups for p in group['params']}
    for name, parameter in model.named_parameters():
        group, is_matrix = found[id(parameter)], parameter.ndim > 1
        assert group['lr'] == pytest.approx(1e-5), name
        if 'norm' in name or 'scale_' in name or is_matrix:
            assert group['weight_decay'] == (0.05 if is_matrix else 0), name


def test_images_normalised_in_a_pipeline_that_a_hook_switches_to():
    cfg = Config(read(RTMDET).to_dict())
    preprocessor = cfg.model.data_preprocessor
    normalize = dict(type='Normalize', mean=preprocessor.mean, std=preprocessor.std, to_rgb=False)
    cfg.model.data_preprocessor = dict(type='DetDataPreprocessor', pad_size_divisor=32)
    hooks = [hook for hook in cfg.custom_hooks if hook.get('switch_pipeline')]
    leaves = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    for node, key in [(hook, 'switch_pipeline') for hook in hooks] + [
        (d, 'pipeline') for d in leaves
    ]:
        node[key] = [*node[key][:-1], normalize, node[key][-1]]
    new = swap_backbone(cfg)
    (switch,) = (hook for hook in new.custom_hooks if hook.get('switch_pipeline'))
    assert switch.switch_pipeline[-2] == new.train_dataloader.dataset.pipeline[-2]
    assert switch.switch_pipeline[-2].to_rgb


def test_what_schedules_say_of_the_rate_is_scaled_and_of_momentum_is_not():
    cfg = Config(read(SEMANTIC_FPN).to_dict())
    cfg.param_scheduler = [
        dict(type='OneCycleLR', eta_max=cfg.optim_wrapper.optimizer.lr, total_steps=80_000),
        dict(type='CosineAnnealingMomentum', eta_min=0.85, T_max=9),
    ]
    rate, momentum = swap_backbone(cfg).param_scheduler
    assert rate.eta_max == pytest.approx(2e-4) and momentum.eta_min == 0.85


def test_images_that_are_rounded_are_not_rounded_twice():
    rounded = swap_backbone(read(SEMANTIC_FPN))
    pipeline = swap_backbone(Config(rounded.to_dict())).test_dataloader.dataset.pipeline
    assert [step.type for step in pipeline].count('ResizeToMultiple') == 1


def test_test_time_augmentation_rounds_too():
    augment = swap_backbone(read(SEMANTIC_FPN)).tta_pipeline[1]
    kinds = [options[0].type for options in augment.transforms]
    assert kinds[:3] == ['Resize', 'ResizeToMultiple', 'RandomFlip']


def test_windows_of_a_fixed_size_are_not_rounded():
    cfg = Config(read(SEMANTIC_FPN).to_dict())
    cfg.model.test_cfg = dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert swap_backbone(cfg).test_dataloader == cfg.test_dataloader


# Imports, optimizer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'before, after',
    [
        (None, ['mmpoolformer']),
        (dict(imports=['mmpoolformer']), ['mmpoolformer']),
        (dict(imports=['json'], allow_failed_imports=True), ['json', 'mmpoolformer']),
        (dict(imports='json'), ['json', 'mmpoolformer']),
        (dict(imports=['mmpretrain.models']), ['mmpoolformer']),  # served the old backbone alone
    ],
)
def test_custom_imports_are_merged(before, after):
    cfg = Config(dict(read(FASTER_RCNN).to_dict(), custom_imports=before))
    merged = swap_backbone(cfg).custom_imports
    assert merged.imports == after
    assert merged.allow_failed_imports == (before or {}).get('allow_failed_imports', False)


@pytest.mark.parametrize('given', ['json', ['json']])
def test_custom_imports_that_are_no_dictionary_are_refused(given):
    cfg = Config(dict(read(FASTER_RCNN).to_dict(), custom_imports=given))
    with pytest.raises(LaunchError, match=r"custom_imports=dict\(imports=\['json'\]\)"):
        swap_backbone(cfg)


def test_imports_that_other_parts_need_stay():
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.custom_imports = dict(imports=['mmpretrain.models'])
    cfg.model.roi_head.bbox_head.loss_cls.type = 'mmpretrain.CrossEntropyLoss'
    assert swap_backbone(cfg).custom_imports.imports == ['mmpretrain.models', 'mmpoolformer']


@pytest.mark.parametrize(
    'name, lr, batch_size', [(MASK_RCNN, 2e-4, 16), (RETINANET, 1e-4, 16), (SEMANTIC_FPN, 2e-4, 32)]
)
def test_optimizer_is_the_published_one(name, lr, batch_size):
    cfg = swap_backbone(read(name))
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    assert cfg.auto_scale_lr.base_batch_size == batch_size
    assert not cfg.optim_wrapper.get('clip_grad') and not cfg.optim_wrapper.get('paramwise_cfg')


def test_the_end_of_the_schedule_is_scaled_with_the_learning_rate():
    (poly,) = read(SEMANTIC_FPN).param_scheduler
    assert poly.eta_min == 1e-4  # half of the new learning rate: it would hardly decay
    assert swap_backbone(read(SEMANTIC_FPN)).param_scheduler[0].eta_min == pytest.approx(2e-6)
    cfg = Config(read(SEMANTIC_FPN).to_dict())
    cfg.param_scheduler = cfg.param_scheduler[0]  # mmengine takes a single one, too
    assert swap_backbone(cfg).param_scheduler.eta_min == pytest.approx(2e-6)


def test_detr_keeps_its_own_adamw():
    assert swap_backbone(read(DETR)).optim_wrapper == read(DETR).optim_wrapper


@pytest.mark.parametrize(
    'name, paramwise',
    [
        (CONVNEXT, dict(decay_rate=0.95, decay_type='layer_wise')),
        (
            'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
            dict(decay_rate=0.9, decay_type='stage_wise'),
        ),
    ],
)
def test_learning_rates_by_layer_stay_with_their_rate(name, paramwise):
    before, wrapper = read(name).optim_wrapper, swap_backbone(read(name)).optim_wrapper
    assert (wrapper.type, wrapper.optimizer) == (before.type, before.optimizer)
    assert (wrapper.constructor, wrapper.paramwise_cfg) == ('MetaFormerLayerDecay', paramwise)


def test_rtmdet_takes_the_toolboxs_rate_for_convnext():
    theirs = read('mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py').optim_wrapper.optimizer
    before, cfg = read(RTMDET), swap_backbone(read(RTMDET))
    assert cfg.optim_wrapper.optimizer == theirs
    assert cfg.optim_wrapper.paramwise_cfg == before.optim_wrapper.paramwise_cfg
    assert cfg.param_scheduler[1].eta_min == pytest.approx(theirs.lr * 0.05)
    assert cfg.auto_scale_lr.base_batch_size == 4 * 32
    assert cfg.custom_hooks == before.custom_hooks


def test_keep_optimizer():
    cfg = swap_backbone(read(SEMANTIC_FPN), keep_optimizer=True)
    assert cfg.optim_wrapper == read(SEMANTIC_FPN).optim_wrapper
    assert cfg.param_scheduler == read(SEMANTIC_FPN).param_scheduler


# The interface -------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [RETINANET, FASTER_RCNN_C4, PSPNET, CONVNEXT])
def test_input_is_untouched_and_every_difference_is_explained(name):
    cfg = read(name)
    before = copy.deepcopy(cfg.to_dict())
    after = swap_backbone(cfg)
    changes = swap_changes(cfg)
    assert cfg.to_dict() == before
    explained = [tuple(change.key.split('.')) for change in changes]
    old, new = leaves(before), leaves(after.to_dict())
    for path in set(old) | set(new):
        if (path in old, old.get(path)) != (path in new, new.get(path)):
            assert any(path[: len(key)] == key for key in explained), path
    for change in changes:
        assert change.reason and change.reason in str(change) and change.old != change.new
        assert entry(after, change.key) == change.new


def test_a_swapped_config_can_be_dumped_and_read(tmp_path):
    cfg = swap_backbone(read(PSPNET))
    cfg.dump(tmp_path / 'own.py')
    assert Config.fromfile(tmp_path / 'own.py').to_dict() == cfg.to_dict()


def test_poolformer_itself_can_be_swapped():
    twice = swap_backbone(swap_backbone(read(RETINANET)), 'm36')
    assert twice.to_dict() == swap_backbone(read(RETINANET), 'm36').to_dict()


@pytest.mark.parametrize(
    'arguments, error, words',
    [
        (dict(arch='s13'), ValueError, ['s13', 's12']),
        (dict(arch=ARCHS['s12']), ValueError, ['official', 'checkpoint=None']),
        (dict(drop_path=0.1), TypeError, ['drop_path', 'drop_path_rate']),
        (dict(out_indices=(0, 1)), TypeError, ['out_indices', 'leave it out']),
        (dict(init_cfg=None), TypeError, ['init_cfg', 'checkpoint']),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error) as raised:
        swap_backbone(read(FASTER_RCNN), **arguments)
    assert all(word in str(raised.value) for word in words)


def test_a_path_is_no_config():
    with pytest.raises(TypeError, match=r'Config\.fromfile'):
        swap_backbone('own.py')


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(model=None), 'no model'),
        (dict(default_scope='mmpose', model=dict(type='TopDown')), 'mmpose'),
        (dict(model=dict(type='RetinaNet')), 'no backbone'),
        (dict(model=dict(type='RetinaNet', backbone=dict(type='NoSuchNet'))), 'NoSuchNet'),
        (dict(model=dict(type='RetinaNet', backbone=dict(type='ResNet', depth=7))), 'depth'),
        (dict(model=dict(type='RetinaNet', backbone=dict(type='ResNet', depth=18))), 'in_channels'),
    ],
)
def test_configs_without_what_a_swap_needs(change, words):
    with pytest.raises(SwapError, match=words):
        swap_backbone(Config(dict(default_scope='mmdet') | change))


def test_detection_heads_at_other_strides_are_refused():
    cfg = Config(read(FASTER_RCNN).to_dict())
    cfg.model.backbone.update(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    with pytest.raises(SwapError, match='stride 4, 8, 16, 16'):
        swap_backbone(cfg)


@pytest.mark.parametrize(
    'name, strides',
    [
        ('mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', '4, 4'),
        ('mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py', '1, 4, 8, 16, 32'),
        ('mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', '8, 8 in tr'),
        ('mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py', '8, 32, 8'),
        ('mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py', 'coarser than stride 2'),
    ],
)
def test_what_fits_no_pyramid_is_refused_with_what_was_measured(name, strides):
    with pytest.raises(SwapError, match=strides) as error:
        swap_backbone(read(name))
    assert error.value.nearest


def test_a_context_path_of_other_strides_is_refused():
    cfg = Config(read(BISENET).to_dict())
    cfg.model.backbone.backbone_cfg.update(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    with pytest.raises(SwapError, match='BiSeNetV1 reads maps of stride 4, 8, 16, 16'):
        swap_backbone(cfg)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::grounding_dino/grounding_dino_swin-t_finetune_16xb2_1x_coco.py',
        'mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py',
    ],
)
def test_models_of_images_and_texts_are_swapped_with_a_warning(name):
    with pytest.warns(UserWarning, match='only training from scratch makes sense'):
        cfg = swap_backbone(read(name))
    assert cfg.model.backbone.type == 'PoolFormer' and cfg.load_from is None


NEAREST = sorted({nearest for _, nearest in REFUSED.values() if nearest})


@pytest.mark.parametrize('name', NEAREST)
def test_the_nearest_config_works(name):
    assert swap_backbone(read(name)).model.backbone.type == 'PoolFormer'
