"""``benchmarks/backbones.py`` trains other backbones beside ours and reports."""

import json

import pytest
import torch
import yaml
from helpers import load_tool, run_tool

from mmpoolformer.adapt.zoo import config_folder

TOOL = load_tool('backbones')


@pytest.mark.parametrize('name', TOOL['BACKBONES'])
def test_backbone_gives_the_channels_that_its_neck_takes(name):
    model = TOOL['build'](name)
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 64, 64))
    assert tuple(feature.shape[1] for feature in features) == TOOL['BACKBONES'][name][1]
    assert [feature.shape[2] for feature in features] == [16, 8, 4, 2]


@pytest.mark.parametrize('row', TOOL['PUBLISHED'], ids=lambda row: row[0])
def test_published_results_are_those_of_the_toolboxes(row):
    _, box_ap, detection, miou, segmentation = row
    for value, source in (box_ap, detection), (miou, segmentation):
        if '::' in source:
            assert result_of(source) == value


def result_of(name):
    """What a toolbox's metafile says about one of its configs."""
    toolbox, _, path = name.partition('::')
    folder, _, model = path.partition('/')
    (metafile,) = (config_folder(toolbox) / folder).glob('metafile.y*ml')
    (found,) = (m for m in yaml.safe_load(metafile.read_text())['Models'] if m['Name'] == model)
    results = found['Results']
    first = results if isinstance(results, dict) else results[0]
    return next(iter(first['Metrics'].values()))


@pytest.mark.long  # what it shares with the token mixers is tested there
def test_report(digits_root, tmp_path):
    (tmp_path / 'digits').symlink_to(digits_root)
    args = ['--backbones', 'ResNet-18', '--seeds', 3, '--iterations', 2, '--rounds', 1]
    run_tool('backbones', *args, '--work-dir', tmp_path, '--out', tmp_path)
    content = json.loads((tmp_path / 'backbones' / 'study.json').read_text())
    assert {(r['task'], r['contender'], r['seed']) for r in content['records']} == {
        ('RetinaNet', 'ResNet-18', 3),
        ('Semantic FPN', 'ResNet-18', 3),
    }
    # torchvision's ResNet-18 has 11.69 M, of which the classifier 0.51 M.
    assert content['costs']['ResNet-18']['parameters'] == pytest.approx(11.18e6, rel=0.001)
    page = (tmp_path / 'backbones.md').read_text()
    assert '| ResNet-18 | ' in page and '11.2 M' in page
    assert (tmp_path / 'backbones' / 'study.png').stat().st_size > 5000
