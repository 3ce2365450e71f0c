"""The demo's own parts: pictures, the table, and not doing twice what is done."""

import json
import re
from threading import Lock

import pytest
import torch
from helpers import CONFIGS, load_tool, run_tool, train_options
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmpoolformer.utils.progress import Bars

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py'


@pytest.fixture
def demo(tmp_path, digits_root, monkeypatch):
    """The demo's functions, on the small data set and below a temporary folder."""
    scope = load_tool('demo')['main'].__globals__
    values = dict(OUT=tmp_path, DATA=digits_root, PREDICTED=2, EXPLAINED=1)
    for name, value in values.items():
        monkeypatch.setitem(scope, name, value)
    monkeypatch.setitem(scope['draw'].__globals__, 'COLUMNS', 2)
    return scope


@pytest.mark.parametrize('config', [RETINANET, SEM_FPN], ids=['detection', 'segmentation'])
def test_what_a_trained_model_is_used_for(config, demo, digits_root, tmp_path, monkeypatch):
    one_at_a_time = Lock()

    def call(tool, *arguments):  # in this process
        with one_at_a_time:
            run_tool(tool, *arguments, '--cfg-options', 'model.test_cfg.score_thr=0')
        return f'python tools/{tool}.py'

    monkeypatch.setitem(demo, 'call', call)
    work_dir = tmp_path / 'model'
    run_tool('train', config, '--work-dir', work_dir, *train_options(config, digits_root))
    result = dict(config=str(work_dir / 'config.py'), model='model', seconds=1.0, metrics={})
    section = demo['use'](result)
    assert result['parameters'] > 10e6
    assert [len(files) for files in section.pictures.values()] == [1, 1, 2, 1, 1]
    page = demo['write_page'](tmp_path / 'index.html', ('model',), [('<model>',)], [section])
    named = re.findall(r'src="(.*?)"', page.read_text())
    assert len(named) == 6 and '&lt;model&gt;' in page.read_text()
    for name in named:
        assert len(Image.open(tmp_path / name).convert('RGB').getcolors(10**6)) > 100


def test_picture_of_the_readme(digits_root, tmp_path, monkeypatch):
    scope = load_tool('readme_picture')['draw_both'].__globals__
    monkeypatch.setitem(scope, 'DATA', digits_root)
    monkeypatch.setitem(scope, 'COLUMNS', 1)
    checkpoints = []
    for config in scope['CONFIGS']:
        cfg = Config.fromfile(config)
        init_default_scope(cfg.default_scope)
        checkpoints.append(str(tmp_path / f'{config.stem}.pth'))
        weights = MODELS.build(cfg.model).state_dict()
        meta = dict(dataset_meta=cfg.metainfo.to_dict())
        torch.save(dict(meta=meta, state_dict=weights), checkpoints[-1])
    scope['draw_both'](checkpoints, tmp_path / 'demo.jpg')
    assert len(Image.open(tmp_path / 'demo.jpg').getcolors(10**6)) > 100


def test_tools_are_called_as_a_user_would(demo, capfd):
    line = demo['call']('get_flops', demo['ROOT'] / 'configs' / 'detection' / RETINANET.name)
    assert line == f'python tools/get_flops.py configs/detection/{RETINANET.name}'
    assert f'$ {line}' in capfd.readouterr().out


@pytest.fixture
def training():
    """The functions that the demo and the study of token mixers train with."""
    return load_tool('training')['train_once'].__globals__


def test_what_is_done_is_not_done_again(training, tmp_path, monkeypatch):
    calls = []

    def train(config, work_dir, *_):
        calls.append(config)
        (work_dir / 'val_metrics.json').write_text('{"mIoU": 50.0}')

    def train_once():
        return training['train_once'](SEM_FPN, tmp_path / 'work', Bars(), threads=1)

    monkeypatch.setitem(training, 'train', train)
    first, again = train_once(), train_once()
    assert first == again and first['metrics'] == {'mIoU': 50.0} and len(calls) == 1
    result = tmp_path / 'work' / 'result.json'
    result.write_text(json.dumps(dict(json.loads(result.read_text()), key='older config')))
    train_once()
    assert len(calls) == 2


def test_a_failed_training_says_why(training, tmp_path):
    config = tmp_path / 'broken.py'
    dataset = "train_dataloader = dict(dataset=dict(data_root='nowhere'))"
    config.write_text(f'_base_ = {str(SEM_FPN)!r}\n{dataset}\n')
    words = r'(?s)training broken failed.*data not found:\s+nowhere'
    with Bars() as bars, pytest.raises(training['TrainingError'], match=words):
        training['train_once'](config, tmp_path / 'work', bars, threads=1)
    assert not (tmp_path / 'work' / 'result.json').exists()


def test_table(demo, capsys):
    metrics = {'coco/bbox_mAP': 0.4567, 'coco/bbox_mAP_50': 0.8}
    result = dict(model='a', metrics=metrics, seconds=12.3, parameters=12_190_000)
    demo['show_table']([demo['row_of'](result)])
    row = next(line for line in capsys.readouterr().out.splitlines() if '12.19 M' in line)
    for cell in ('0.457', '0.8', '–', '12'):
        assert cell in row
