"""What a model file says about itself, and what it is refused for."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_models import BASES

from mmpoolformer.exporting import extras
from mmpoolformer.exporting.metadata import ImageSizeError, Metadata, is_model_file, model_of
from mmpoolformer.utils.errors import LaunchError

FILE = Path('model.onnx')
OUTPUTS = dict(boxes='', scores='', labels='')


@pytest.fixture
def cfg():
    return Config.fromfile(BASES['retinanet'])


def metadata(cfg, **fields):
    options = dict(heights=[64, None], widths=[64, None], model=model_of(cfg))
    return Metadata('detector', ['a'], [[0, 0, 0]], 'uint8', OUTPUTS, **dict(options, **fields))


def test_it_comes_back_from_its_text(cfg):
    meta = metadata(cfg, options=dict(mask_threshold=0.5))
    assert Metadata.read(meta.text(), FILE) == meta


@pytest.mark.parametrize('text', [None, '', '{}', '[1]', '{"kind": "detector"}'])
def test_another_programs_file(text):
    with pytest.raises(LaunchError, match=r'model.onnx was not written by tools/export.py'):
        Metadata.read(text, FILE)


@pytest.mark.parametrize(
    'field, value',
    [
        ('kind', '\x1b[31m'),
        ('classes', None),
        ('classes', ['a\x07']),
        ('classes', ['a', 'b']),  # two for one colour
        ('palette', [['x']]),
        ('palette', 5),
        ('outputs', 3),
        ('outputs', {'boxes': ''}),
        ('kind', 'segmentor'),
        ('heights', None),
        ('widths', ['64', None]),
        ('model', []),
        ('options', None),
        ('outputs', dict(OUTPUTS, masks='')),  # without a threshold
        ('options', dict(align_corners=[1])),
        ('options', dict(threshold='x')),
    ],
)
def test_fields_that_are_none(field, value, cfg):
    text = json.dumps(dict(json.loads(metadata(cfg).text()), **{field: value}))
    with pytest.raises(LaunchError, match=r'was not written by tools/export.py'):
        Metadata.read(text, FILE)


@pytest.mark.parametrize('height, width', [(63, 640), (640, 10)])
def test_a_size_that_the_graph_does_not_take(cfg, height, width):
    with pytest.raises(ImageSizeError, match='takes images of 64–any×64–any pixels'):
        metadata(cfg).check_size(height, width, FILE)


def test_a_graph_of_one_size(cfg):
    meta = metadata(cfg, heights=[480, 480], widths=[640, 640])
    meta.check_size(480, 640, FILE)
    with pytest.raises(ImageSizeError, match=r'images of 480×640 pixels .*, not 640×480'):
        meta.check_size(640, 480, FILE)


def test_another_config_is_named_with_what_differs(cfg):
    meta = metadata(cfg)
    meta.check_config(cfg, FILE)
    cfg.model.test_cfg.score_thr = 0.3
    with pytest.raises(LaunchError, match=r'model.test_cfg.score_thr=0.05 and 0.3'):
        meta.check_config(cfg, FILE)


def test_what_only_training_reads_may_differ(cfg):
    meta = metadata(cfg)
    cfg.model.train_cfg = dict(allowed_border=1)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x')
    meta.check_config(cfg, FILE)


@pytest.mark.parametrize('name, expected', [('a.onnx', True), ('a.xml', True), ('a.pth', False)])
def test_model_files_by_their_suffix(name, expected):
    assert is_model_file(name) == expected


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(LaunchError, match=r'no_such_package .*mmpoolformer\[export\]'):
        extras.require('no_such_package')


def test_a_torch_that_cannot_export(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.2+cpu')
    with pytest.raises(LaunchError, match=r'torch 2.1.2\+cpu cannot .*: torch 2.13 or later can'):
        extras.require_exporter()
