"""Checkpoints of whole models in the launchers, as mmdet 2.19 and mmseg 0.19 wrote them too."""

import functools
import math

import pytest
import torch
from helpers import (
    CONFIGS,
    TINY,
    random_weights,
    run_tool,
    tool_error,
    train_options,
)
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from tiny_files import LAYOUTS, OUT_NORMS, Malicious, tiny_file_contents

from mmpoolformer import PoolFormer
from mmpoolformer.checkpoints import (
    register_loaders,
)


def numbered(template, count):
    return [template.format(i) for i in range(count)]


FPN = {n: [*numbered('neck.lateral_convs.{}.conv', n)] for n in (3, 4)}
WHOLE_MODELS = {
    'retinanet_poolformer-s12_fpn_1x_coco': [
        *FPN[3],
        *numbered('neck.fpn_convs.{}.conv', 5),
        *numbered('bbox_head.cls_convs.{}.conv', 4),
        *numbered('bbox_head.reg_convs.{}.conv', 4),
        'bbox_head.retina_cls',
        'bbox_head.retina_reg',
    ],
    'mask-rcnn_poolformer-s12_fpn_1x_coco': [
        *FPN[4],
        *numbered('neck.fpn_convs.{}.conv', 4),
        *('rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg'),
        *('roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'),
        *numbered('roi_head.bbox_head.shared_fcs.{}', 2),
        *numbered('roi_head.mask_head.convs.{}.conv', 4),
        *('roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits'),
    ],
    'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512': [
        *FPN[4],
        *numbered('neck.fpn_convs.{}.conv', 4),
        'decode_head.conv_seg',
        *[
            f'decode_head.scale_heads.{i}'
            for i in ('0.0', '1.0', '2.0', '2.2', '3.0', '3.2', '3.4')
        ],
    ],
}


def config_path(name):
    return next(CONFIGS.glob(f'*/{name}.py'))


@functools.cache
def old_file(name):
    """The keys that the old toolbox wrote for a model, with tensors of the right shapes."""
    cfg = Config.fromfile(config_path(name))
    init_default_scope(cfg.default_scope)
    model = random_weights(MODELS.build(cfg.model))
    layers = WHOLE_MODELS[name]
    keys = set()
    for layer in layers:
        if 'scale_heads' in layer:
            bn = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
            keys |= {f'{layer}.conv.weight', *(f'{layer}.bn.{part}' for part in bn)}
        else:
            keys |= {f'{layer}.weight', f'{layer}.bias'}
    with torch.device('meta'):
        keys |= {f'backbone.{key}' for key in PoolFormer('s12').state_dict()}
    if name.startswith('retinanet'):
        keys -= {'backbone.norm0.weight', 'backbone.norm0.bias'}
    assert keys == set(model.state_dict())
    meta = dict(mmdet_version='2.19.0', CLASSES=('a', 'b'), epoch=12, config='model = dict()')
    return dict(meta=meta, state_dict=model.state_dict(), optimizer=dict(state={}))


@pytest.mark.parametrize('name', WHOLE_MODELS)
def test_old_whole_models_load_through_the_test_launcher(
    name, coco_root, ade_root, tmp_path, capsys
):
    contents = old_file(name)
    path, config = tmp_path / 'old.pth', config_path(name)
    options = train_options(config, coco_root if config.parent.name == 'detection' else ade_root)
    torch.save(contents, path)
    run_tool('test', config, path, '--work-dir', tmp_path, *options)
    assert (tmp_path / 'test_metrics.json').is_file()

    lost = WHOLE_MODELS[name][-1] + (
        '.conv.weight' if 'scale' in WHOLE_MODELS[name][-1] else '.bias'
    )
    fewer = {k: v for k, v in contents['state_dict'].items() if k != lost}
    torch.save(dict(contents, state_dict=fewer), path)
    message = tool_error(capsys, 'test', config, path, '--work-dir', tmp_path, *options)
    assert 'does not fit the model' in message and lost in message


@pytest.mark.parametrize('layout', LAYOUTS)
def test_load_from_classification_weights_reaches_the_backbone(layout, file_of):
    register_loaders(replace=True)
    loaded = CheckpointLoader.load_checkpoint(str(file_of(tiny_file_contents(layout))), 'cpu')
    expected = {f'backbone.{k}' for k in PoolFormer(TINY).state_dict() if k not in OUT_NORMS}
    assert expected <= loaded['state_dict'].keys()


@pytest.mark.parametrize(
    'contents, words',
    [
        ({'conv1.weight': torch.ones(1)}, 'no tensor of the checkpoint fits'),
        ({'decode_head.conv_seg.bias': torch.full((150,), math.nan)}, 'NaN or Inf in decode_head'),
        ([1, 2], 'holds list'),
    ],
)
def test_load_from_a_checkpoint_of_which_nothing_fits(
    contents, words, file_of, ade_root, tmp_path, capsys
):
    config = config_path('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    options = [*train_options(config, ade_root), f'load_from={file_of(contents)}']
    assert words in tool_error(capsys, 'train', config, '--work-dir', tmp_path, *options)


def test_launchers_refuse_code_in_checkpoints(tmp_path, capsys, ade_root):
    config = config_path('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    torch.save(dict(state_dict={}, evil=Malicious()), tmp_path / 'evil.pth')
    options = train_options(config, ade_root)
    args = [config, tmp_path / 'evil.pth', '--work-dir', tmp_path, *options]
    message = tool_error(capsys, 'test', *args)
    assert 'executes code' in message and '--allow-pickle' in message
    assert 'EXECUTED' not in capsys.readouterr().out
