"""The demo's own parts: pictures, the table, and not doing twice what is done."""

import json

import pytest
from conftest import CONFIGS, ROOT, load_tool, run_tool, train_options
from mmengine.config import Config
from PIL import Image
from rich.progress import Progress

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py'


@pytest.fixture
def demo(tmp_path, digits_root, monkeypatch):
    """The demo's functions, on the small data set and below a temporary folder."""
    functions = load_tool('demo')
    scope = functions['train_once'].__globals__
    for name, value in dict(ROOT=tmp_path, OUT=tmp_path, DATA=digits_root, COLUMNS=2).items():
        monkeypatch.setitem(scope, name, value)
    return scope


@pytest.mark.parametrize(
    'config, draw',
    [(RETINANET, 'draw_detections'), (SEM_FPN, 'draw_segmentations')],
    ids=['detection', 'segmentation'],
)
def test_pictures(config, draw, demo, digits_root, tmp_path):
    run_tool('train', config, '--work-dir', tmp_path, *train_options(config, digits_root))
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    model = demo[draw](Config.fromfile(tmp_path / 'config.py'), checkpoint, tmp_path / 'p.png')
    assert sum(p.numel() for p in model.parameters()) > 10e6
    assert len(Image.open(tmp_path / 'p.png').convert('RGB').getcolors(10**6)) > 100


def test_what_is_done_is_not_done_again(demo, tmp_path, monkeypatch):
    calls = []

    def train(config, work_dir, *_):
        calls.append(config)
        (work_dir / 'val_metrics.json').write_text('{"mIoU": 50.0}')

    def train_once():
        return demo['train_once'](SEM_FPN, tmp_path / 'work', Progress())

    monkeypatch.setitem(demo, 'train', train)
    first, again = train_once(), train_once()
    assert first == again and first['metrics'] == {'mIoU': 50.0} and len(calls) == 1
    result = tmp_path / 'work' / 'result.json'
    result.write_text(json.dumps(dict(json.loads(result.read_text()), key='older config')))
    train_once()
    assert len(calls) == 2


def test_a_failed_training_says_why(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(demo, 'ROOT', ROOT)
    config = tmp_path / 'broken.py'
    dataset = "train_dataloader = dict(dataset=dict(data_root='nowhere'))"
    config.write_text(f'_base_ = {str(SEM_FPN)!r}\n{dataset}\n')
    words = r'(?s)training broken failed.*data not found:\s+nowhere'
    with Progress() as progress, pytest.raises(demo['TrainingError'], match=words):
        demo['train_once'](config, tmp_path / 'work', progress)
    assert not (tmp_path / 'work' / 'result.json').exists()


def test_table(demo, capsys):
    metrics = {'coco/bbox_mAP': 0.4567, 'coco/bbox_mAP_50': 0.8}
    demo['show_table']([dict(model='a', metrics=metrics, seconds=12.3, parameters=12_190_000)])
    row = next(line for line in capsys.readouterr().out.splitlines() if '12.19 M' in line)
    for cell in ('0.457', '0.8', '–', '12'):
        assert cell in row
