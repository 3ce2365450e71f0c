"""The recipes of other methods: the toolboxes' own but for what they name, and they train."""

import json

import pytest
import torch
from helpers import RECIPES, run_tool, tool_error
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmpoolformer import swap_backbone
from mmpoolformer.adapt.edit import Edit
from mmpoolformer.adapt.own_data import OwnDataError, use_dataset
from mmpoolformer.adapt.own_data.sizes import set_image_size
from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.datasets.fit import check_fit
from mmpoolformer.datasets.problems import ERROR
from mmpoolformer.registry import build_model
from mmpoolformer.utils.config_tree import unsync_batch_norms, walk

CONVNEXT = 'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_'
DEPTH = ('model.backbone.drop_path_rate',)
SECTIONS = (
    'model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'custom_hooks',
)  # fmt: skip
GROUP_NORM = ('model.neck.norm_cfg', 'model.bbox_head.norm_cfg')
LIKE_CONVNEXT = (
    *GROUP_NORM, 'optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks.1.switch_epoch',
)  # fmt: skip
IMAGES_OF_M = 'training.pipeline.3.ratio_range', 'custom_hooks.1.switch_pipeline.2.ratio_range'
# The recipe that each starts from, and what it changes apart from the backbone.
SOURCES = {
    'cascade-mask-rcnn': (f'{CONVNEXT}coco.py', DEPTH),
    'dino-4scale': ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', ()),
    'mask2former+coco': ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', DEPTH),
    'mask2former+coco-panoptic': (
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        DEPTH,
    ),
    'mask2former+ade20k-512x512': (
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        DEPTH,
    ),
    'rtmdet-m': (
        'mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py',
        (*DEPTH, *LIKE_CONVNEXT),
    ),
    'rtmdet-s': (
        'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
        (*DEPTH, *LIKE_CONVNEXT, *IMAGES_OF_M),
    ),
    'upernet': (
        'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
        (*DEPTH, 'auto_scale_lr.base_batch_size'),  # theirs has none
    ),
}
SCHEDULE = 'mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py'
# What the toolboxes write down although it is the default.
DEFAULTS = {
    'model.pretrained': None,
    'model.init_cfg': None,
    'im2col_step': 64,
    'auto_scale_lr.enable': False,
    'optim_wrapper.optimizer.betas': (0.9, 0.999),
    'optim_wrapper.optimizer.eps': 1e-8,
    'optim_wrapper.clip_grad': None,
    'reduce_zero_label': True,  # of ADE20K
}


by_recipe = pytest.mark.parametrize('config', RECIPES, ids=lambda path: path.stem)


def in_folder(name):
    return [path for path in RECIPES if path.parent.name == name]


def source_of(config):
    method, *_, data = config.stem.split('_')
    return SOURCES.get(method) or SOURCES[f'{method}+{data}']


def arch_of(config):
    return config.stem.split('_')[1].removeprefix('poolformer-').replace('-', '_')


def leaves(node, path=''):
    """The values of a config by their dotted keys, without those that are defaults."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        children = enumerate(node)
    else:
        node = tuple(node) if isinstance(node, list) else node
        known = [value for key, value in DEFAULTS.items() if path.endswith(key)]
        is_left_out = node is None or node in known or path.endswith('_scope_')
        return {} if is_left_out else {path: node}
    found = {}
    for key, child in children:
        found |= leaves(child, f'{path}.{key}' if path else str(key))
    return found


def sections(cfg):
    loader = cfg.train_dataloader
    images = loader.dataset
    while 'dataset' in images:
        images = images.dataset
    training = dict(batch_size=loader.batch_size, pipeline=images.pipeline)
    return leaves({key: cfg.to_dict().get(key) for key in SECTIONS} | dict(training=training))


def read(name, arch):
    cfg = Config.fromfile(find_config(name), import_custom_modules=False)
    return swap_backbone(cfg, arch)


@by_recipe
def test_recipe_is_the_toolboxs_own_but_for_what_it_names(config):
    name, changed = source_of(config)
    ours, theirs = sections(Config.fromfile(config)), sections(read(name, arch_of(config)))
    differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert [key for key in sorted(differing) if not key.startswith(changed)] == []
    assert all(any(key.startswith(start) for key in differing) for start in changed)


@pytest.mark.parametrize('size', ['s', 'm'])
def test_rtmdet_has_the_schedule_of_convnext(size):
    (config,) = (path for path in RECIPES if path.name.startswith(f'rtmdet-{size}_poolformer'))
    ours, theirs = sections(Config.fromfile(config)), sections(read(SCHEDULE, 's24'))
    starts = 'optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks', *GROUP_NORM
    assert {k: v for k, v in ours.items() if k.startswith(starts)} == {
        k: v for k, v in theirs.items() if k.startswith(starts)
    }
    assert ours['auto_scale_lr.base_batch_size'] == 4 * 32  # its name's; theirs inherits 16


@pytest.mark.parametrize(
    'config', [path for path in RECIPES if 'caformer' in path.stem], ids=lambda path: path.stem
)
def test_a_variant_holds_nothing_but_its_backbone(config):
    base = config.with_name(config.name.replace('caformer-s18', 'poolformer-s24'))
    ours, theirs = (leaves(Config.fromfile(path).to_dict()) for path in (config, base))
    differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    backbone = 'model.backbone.'
    assert differing == {f'{backbone}type', f'{backbone}arch', f'{backbone}init_cfg.checkpoint'}


# Training on drawn images ------------------------------------------------------------------

METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}
# Proposals, samples, queries, and points of masks, which cost the most time.
MOST = ('nms_pre', 100), ('max_per_img', 50), ('num', 32), ('num_queries', 50), ('num_points', 64)
PANOPTIC = [path for path in RECIPES if 'panoptic' in path.stem]


def small(config, root, side):
    """A recipe for images of a side, two iterations and the tiny trees of published data."""
    edit = Edit(Config.fromfile(config))
    set_image_size(edit, side)
    cfg = edit.cfg
    for _, node in walk(cfg.model):
        for key, most in MOST:
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)
        if node.get('allowed_border') == 0:  # every anchor is larger than these images
            node.allowed_border = -1
    cfg.model.backbone.init_cfg = None
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=1 + (split == 'train'))
        loader.pop('pin_memory', None)
        dataset = loader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.data_root = f'{root}/'
        if split != 'train' and cfg.default_scope == 'mmdet':
            cfg[f'{split}_evaluator'].ann_file = f'{root}/annotations/instances_val2017.json'
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.update({'max_epochs' if by_epoch else 'max_iters': 1 if by_epoch else 2})
    cfg.train_cfg.update(val_interval=1 if by_epoch else 2)
    cfg.default_hooks.checkpoint.update(interval=10, save_last=False)
    for key in ('test_cfg', 'test_cfg.rcnn'):  # random weights find nothing above the usual ones
        node = cfg.model
        for part in key.split('.'):
            node = (node or {}).get(part)
        if node and 'score_thr' in node:
            node.score_thr = 0.0
    return cfg


TRAINED = [
    pytest.param(path, marks=[pytest.mark.long] if 'caformer' in path.stem else [], id=path.stem)
    for path in RECIPES
    if path not in PANOPTIC
]


@pytest.mark.parametrize('config', TRAINED)
def test_recipe_trains_two_iterations_and_evaluates(config, coco_root, ade_root, tmp_path):
    root = ade_root if config.parent.name == 'segmentation' else coco_root
    cfg = small(config, root, 192 if config.stem.startswith('dino') else 96)
    cfg.dump(tmp_path / 'small.py')
    run_tool('train', tmp_path / 'small.py', '--work-dir', tmp_path / 'work')
    metrics = json.loads((tmp_path / 'work' / 'val_metrics.json').read_text())
    assert METRICS[cfg.default_scope] in metrics


@pytest.mark.parametrize('config', PANOPTIC, ids=lambda path: path.stem)
def test_panoptic_recipe_trains_a_step_and_predicts(config):
    # Its annotations are read by panopticapi, which no package index has.
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.batch_augments = None
    unsync_batch_norms(cfg.model)
    model = build_model(cfg.model, 'mmdet')
    batch = demo_mm_inputs(2, (3, 96, 96), [3, 3], with_mask=True, with_semantic=True)
    for sample in batch['data_samples']:
        sample.gt_sem_seg.sem_seg.clamp_(0, 132)
        sample.set_metainfo(dict(batch_input_shape=(96, 96)))
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
    with torch.no_grad():
        found = model.eval().test_step(demo_mm_inputs(1, (3, 96, 96), [3]))
    assert found[0].pred_panoptic_seg.sem_seg.shape[-2:] == found[0].ori_shape[:2]


@pytest.mark.parametrize('config', PANOPTIC, ids=lambda path: path.stem)
def test_panoptic_recipe_says_which_data_is_missing(config, capsys):
    missing = tool_error(capsys, 'train', config).splitlines()
    for split in ('train', 'val'):
        folder = f'  data/coco/annotations/panoptic_{split}2017'
        assert {folder, f'{folder}.json'} <= set(missing)


def test_instance_recipe_asks_for_no_segments(capsys):
    (config,) = (p for p in RECIPES if p.name == 'mask2former_poolformer-s24_8xb2-lsj-50e_coco.py')
    message = tool_error(capsys, 'train', config)
    assert 'instances_train2017.json' in message and 'panoptic' not in message


@pytest.mark.parametrize('config', in_folder('detection'), ids=lambda path: path.stem)
def test_detector_takes_own_data(config, own_coco):
    given = Config.fromfile(config), own_coco / 'images', own_coco / 'all.json'
    if config in PANOPTIC:
        with pytest.raises(OwnDataError, match='start from an instance'):
            use_dataset(*given)
        return
    assert_fits(use_dataset(*given), 'mmdet')


@pytest.mark.parametrize('config', in_folder('segmentation'), ids=lambda path: path.stem)
def test_segmentor_takes_own_data(config, own_label_maps):
    given = Config.fromfile(config), own_label_maps / 'images', own_label_maps / 'labels'
    assert_fits(use_dataset(*given, classes=own_label_maps / 'classes.txt'), 'mmseg')


def assert_fits(cfg, scope):
    init_default_scope(scope)
    assert [problem for problem in check_fit(cfg) if problem.level == ERROR] == []
