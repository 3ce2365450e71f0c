"""Architectures and token mixers in other models' configs."""

import re
import subprocess
import sys

import pytest
import torch
from helpers import CONFIGS, ROOT, Depthwise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmpoolformer import (
    METAFORMERS,
    TOKEN_MIXERS,
    MetaFormer,
    SwapError,
    swap_backbone,
)
from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.archs import official_weights


def test_a_mixer_of_ones_own_works_as_documented(tmp_path, monkeypatch):
    page = (ROOT / 'docs' / 'metaformer.md').read_text().split('## One of your own')[1]
    module, config = re.findall(r'```python\n(.*?)```', page, flags=re.S)
    (tmp_path / 'shift.py').write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    base = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
    (tmp_path / 'own.py').write_text(f'_base_ = {str(base)!r}\n{config}')
    cfg = Config.fromfile(tmp_path / 'own.py')
    init_default_scope('mmdet')
    try:
        with torch.device('meta'):
            backbone = MODELS.build(cfg.model).backbone
    finally:
        TOKEN_MIXERS._module_dict.pop('shift')
    kinds = [type(stage[0].token_mixer).__name__ for stage in backbone.network[::2]]
    assert kinds == ['Shift', 'Pooling', 'Pooling', 'Shift']

    command = re.search(r'```shell\n(.*?) +#', page)[1]
    run = subprocess.run(
        command.replace('tools/', f'{ROOT}/tools/').replace('python', sys.executable),
        shell=True, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert 'data not found' in run.stderr and 'shift' not in run.stderr


@pytest.fixture(scope='module')
def retinanet():
    return Config.fromfile(find_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'))


@pytest.mark.parametrize(
    'arch, options',
    [
        ('s12', dict(token_mixers='attention')),
        ('s12', dict(token_mixers=Depthwise)),
        ('caformer_s18', dict(token_mixers=None)),
        (METAFORMERS['caformer_s18'], {}),
        (METAFORMERS['caformer_s18']._asdict(), {}),
        ('randformer_s12', dict(input_size=(800, 1344))),
    ],
    ids=['mixer', 'class', 'its own', 'Arch', 'dict', 'size'],
)
def test_swap_gives_a_metaformer_that_builds(arch, options, retinanet):
    cfg = swap_backbone(retinanet, arch, checkpoint=None, **options)
    init_default_scope('mmdet')
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model).backbone
    assert type(backbone) is MetaFormer


@pytest.mark.parametrize('name', ['randformer_s12', 'metaformer_ppff_s12'])
def test_swap_refuses_a_mixer_of_one_size(name, retinanet):
    with pytest.raises(SwapError, match=r'one size only.*input_size'):
        swap_backbone(retinanet, name)


@pytest.mark.parametrize(
    'arch, options, words',
    [
        ('s12', dict(token_mixers='attention'), ['s12', 'attention', 'checkpoint=None']),
        ('randformer_s12', dict(input_size=(800, 1344)), ['224×224', '1344', 'checkpoint=None']),
        ('s12', dict(token_mixers=5), ['token_mixers=5', '4 in a list']),
        ('s12', dict(token_mixers=['pooling'] * 2), ['pooling', '4 in a list']),
        (METAFORMERS['caformer_s18'], {}, ['caformer_s18', 'checkpoint=None']),
    ],
    ids=['mixer', 'size', 'number', 'two', 'arch of ones own'],
)
def test_swap_refuses_mixers_without_official_weights(arch, options, words, retinanet):
    with pytest.raises(ValueError) as error:
        swap_backbone(retinanet, arch, **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('input_size', [224, [224, 224]])
def test_swap_takes_official_weights_at_their_size(input_size, retinanet):
    cfg = swap_backbone(retinanet, 'randformer_s12', input_size=input_size)
    assert cfg.model.backbone.init_cfg.checkpoint == official_weights('randformer_s12')


@pytest.mark.parametrize('name', ['caformer_s18', 'metaformer_ppaa_s12'])
def test_swap_takes_every_architecture(name, retinanet):
    cfg = swap_backbone(retinanet, name)
    assert (cfg.model.backbone.type, cfg.model.backbone.arch) == ('MetaFormer', name)
    assert name in cfg.model.backbone.init_cfg.checkpoint
    init_default_scope('mmdet')
    with torch.device('meta'):
        assert isinstance(MODELS.build(cfg.model).backbone, MetaFormer)
