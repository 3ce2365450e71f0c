"""Configs by their names: bare, with a folder, with and without the ending."""

import pytest
from helpers import CONFIGS, PUBLISHED, run_tool, tool_error
from mmengine.config import Config

from mmpoolformer.adapt.zoo import config_folder, find_config, list_configs
from mmpoolformer.engine.launch import find_config_file

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'


@pytest.mark.parametrize('config', PUBLISHED, ids=lambda path: path.stem)
def test_configs_of_this_package_are_found_by_bare_name(config):
    assert find_config_file(config.name) == find_config_file(config.stem) == config


@pytest.mark.parametrize(
    'name', ['detection/retinanet_poolformer-s12_fpn_1x_coco.py', RETINANET.name, RETINANET.stem]
)
def test_configs_of_this_package_are_found_by_name_in_the_zoo(name):
    assert find_config(f'mmpoolformer::{name}') == RETINANET


@pytest.mark.parametrize('name', ['retinanet_r50_fpn_1x_coco', 'retinanet_r50_fpn_1x_coco.py'])
def test_configs_of_the_toolboxes_are_found_without_their_folder(name):
    folder = config_folder('mmdet')
    assert find_config(f'mmdet::{name}') == folder / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py'


def test_parts_of_configs_are_no_configs():
    assert not [name for name in list_configs('mmpoolformer') if '_base_' in name]
    with pytest.raises(FileNotFoundError, match='ships no config schedule_1x'):
        find_config('mmpoolformer::schedule_1x.py')


def test_a_file_comes_before_a_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / RETINANET.name).write_text('model = None')
    assert find_config_file(RETINANET.name).resolve() == tmp_path / RETINANET.name


@pytest.mark.parametrize(
    'name, words',
    [
        (
            'retinanet_poolformer_s12_fpn',
            ['config not found', f'mmpoolformer::detection/{RETINANET.name}'],
        ),
        ('mmpoolformer::detection/retinanet_poolformer-s13_fpn_1x_coco.py', [RETINANET.name]),
        ('mmdet::retinanet_r50_fpn_1x', ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']),
        ('nowhere.py', ['config not found: nowhere.py']),
        ('mmdet::x', ['mmdet ships no config x']),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(name, words, capsys):
    message = tool_error(capsys, 'train', name)
    assert all(word in message for word in words), message


def test_a_bare_name_in_another_tool(tmp_path):
    run_tool('swap_backbone', RETINANET.stem, '--arch', 's24', '-o', tmp_path / 'own.py')
    assert Config.fromfile(tmp_path / 'own.py').model.backbone.arch == 's24'
