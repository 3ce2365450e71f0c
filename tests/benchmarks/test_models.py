"""The page of the model zoo is what its maker makes, of counts that can be counted again."""

import json
import shutil

import pytest
import yaml
from helpers import ROOT, load_tool, run_tool

REPORTS = ROOT / 'docs' / 'reports'
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Models']
COUNTS = json.loads((REPORTS / 'models' / 'counts.json').read_text())


@pytest.fixture(scope='module')
def models():
    return load_tool('models')


def test_the_page_is_what_the_command_makes(tmp_path):
    (tmp_path / 'models').mkdir()
    shutil.copy(REPORTS / 'models' / 'counts.json', tmp_path / 'models')
    run_tool('models', '--keep-counts', '--out', tmp_path)
    assert (tmp_path / 'models.md').read_text() == (REPORTS / 'models.md').read_text()


def test_every_model_of_the_index_was_counted():
    assert list(COUNTS) == [model['Name'] for model in INDEX]


def test_counts_are_those_of_the_tool(models, capsys):
    name = 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512'
    run_tool('get_flops', name)
    assert models['read_counts'](capsys.readouterr().out) == COUNTS[name]
