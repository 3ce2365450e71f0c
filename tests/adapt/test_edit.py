"""Paths in configs, and configs that are edited."""

import pytest
from mmengine.config import Config

from mmpoolformer.adapt.edit import Edit
from mmpoolformer.utils.config_tree import find, follow, unsync_batch_norms


@pytest.fixture
def cfg():
    steps = [dict(type='Load'), dict(type='Resize', scale=(4, 4))]
    return Config(dict(data=dict(pipeline=steps, prefix=None)))


@pytest.mark.parametrize(
    'path, found, done',
    [
        (('data', 'pipeline', 1, 'type'), 'Resize', 4),
        (['data', 'pipeline', '1', 'type'], 'Resize', 4),
        (('data', 'pipeline', 2), None, 2),
        (('data', 'prefix', 'img'), None, 2),
        (('date',), None, 0),
    ],
)
def test_paths(cfg, path, found, done):
    assert follow(cfg, path)[1] == done
    assert find(cfg, path) == found


def test_an_edit_leaves_the_config_alone_and_notes_what_it_changes(cfg):
    before = cfg.to_dict()
    edit = Edit(cfg)
    edit.set(('data', 'pipeline', 1, 'scale'), [8, 8], 'larger')
    edit.set(('data', 'prefix'), None, 'as it is')
    assert cfg.to_dict() == before
    assert edit.get(('data', 'pipeline', 1, 'scale')) == (8, 8)
    (change,) = edit.changes
    assert change == ('data.pipeline.1.scale', (4, 4), (8, 8), 'larger')
    assert edit.find(('data', 'test')) == {}


def test_norms_over_processes_become_plain():
    model = dict(norm_cfg=dict(type='SyncBN'), heads=[dict(norm_cfg=dict(type='MMSyncBN'))])
    unsync_batch_norms(model)
    assert model == dict(norm_cfg=dict(type='BN'), heads=[dict(norm_cfg=dict(type='BN'))])
