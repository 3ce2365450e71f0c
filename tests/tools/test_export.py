"""``tools/export.py``, and ``tools/test.py`` and ``tools/predict.py`` on what it writes."""

import json

import numpy as np
import pytest
import torch
from helpers import run_tool, save_noise, tool_error
from tiny_models import save_tiny_model

from mmpoolformer.exporting import open_model
from mmpoolformer.exporting.extras import OLDEST_TORCH
from mmpoolformer.utils.errors import LaunchError

VERSION = tuple(map(int, torch.__version__.split('+')[0].split('.')[:2]))
pytestmark = pytest.mark.skipif(
    VERSION < OLDEST_TORCH, reason=f'whole models are exported by torch {OLDEST_TORCH} or later'
)
for package in ('onnx', 'onnxruntime', 'onnxscript', 'openvino'):
    pytest.importorskip(package, reason='tests of the extra «export»')

SIZE = 64  # of the digits here


def data(root):
    """Options that lead a digits config to a small data set."""
    options = [
        f'{split}_dataloader.dataset.data_root={root}/' for split in ('train', 'val', 'test')
    ]
    options += [f'{split}_dataloader.num_workers=0' for split in ('val', 'test')]
    options += [f'{split}_dataloader.persistent_workers=False' for split in ('val', 'test')]
    return ['--cfg-options', *options]


def of_detector(root):
    file = f'{root}/annotations/instances_validation.json'
    return [*data(root), f'val_evaluator.ann_file={file}', f'test_evaluator.ann_file={file}']


@pytest.fixture(scope='session')
def exported_detector(detector, digits_root, tmp_path_factory):
    """A detector in ONNX for all sizes."""
    path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
    run_tool('export', *detector, '-o', path, '--check', 2, *of_detector(digits_root))
    return path


@pytest.fixture(scope='session')
def exported_segmentor(segmentor, digits_root, tmp_path_factory):
    """A segmentor in OpenVINO for one size."""
    path = tmp_path_factory.mktemp('openvino') / 'model.xml'
    sizes = '--size', SIZE, SIZE
    run_tool('export', *segmentor, '-o', path, '--check', 2, *sizes, *data(digits_root))
    return path


def metrics(work_dir):
    return json.loads((work_dir / 'test_metrics.json').read_text())


def test_metrics(config, model, work_dir, options):
    run_tool('test', config, model, '--work-dir', work_dir, *options)
    return metrics(work_dir)


test_metrics.__test__ = False


def test_a_detector_has_the_map_of_its_checkpoint(
    detector, exported_detector, digits_root, tmp_path
):
    options = of_detector(digits_root)
    theirs = test_metrics(*detector, tmp_path / 'torch', options)
    ours = test_metrics(detector[0], exported_detector, tmp_path / 'onnx', options)
    assert ours['coco/bbox_mAP'] == pytest.approx(theirs['coco/bbox_mAP'], abs=1e-3)


def test_a_segmentor_has_the_miou_of_its_checkpoint(
    segmentor, exported_segmentor, digits_root, tmp_path
):
    theirs = test_metrics(*segmentor, tmp_path / 'torch', data(digits_root))
    ours = test_metrics(segmentor[0], exported_segmentor, tmp_path / 'vino', data(digits_root))
    assert ours['mIoU'] == pytest.approx(theirs['mIoU'], abs=0.05)


def test_predict_takes_a_model_file(detector, exported_detector, digits_root, tmp_path):
    images = digits_root / 'images' / 'validation'
    options = '--device', 'cpu', '--score-thr', 0, '--no-pictures'
    found = []
    for name, model in (('torch', detector[1]), ('onnx', exported_detector)):
        run_tool('predict', detector[0], model, images, '--out', tmp_path / name, *options)
        entries = json.loads((tmp_path / name / 'predictions.json').read_text())
        found.append(sorted(entry['score'] for entry in entries))
    np.testing.assert_allclose(*found, atol=1e-3)


def test_one_file_for_all_sizes(exported_detector):
    model = open_model(exported_detector)
    for size in ((320, 320), (97, 201)):
        image = np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8)
        found = model(image)
        assert set(found) == {'boxes', 'scores', 'labels'} and len(found['boxes']) == 5
        assert (found['boxes'] >= 0).all() and (found['boxes'] <= max(size)).all()


def test_a_file_says_what_it_is(exported_segmentor):
    meta = open_model(exported_segmentor).meta
    assert meta.kind == 'segmentor' and len(meta.classes) == 7 and meta.heights == [SIZE, SIZE]


def test_another_config_is_refused(detector, exported_detector, digits_root, capsys):
    options = [*of_detector(digits_root), 'model.test_cfg.score_thr=0.5']
    message = tool_error(capsys, 'test', detector[0], exported_detector, *options)
    assert 'model.test_cfg.score_thr=0.0 and 0.5' in message


def test_other_classes_are_refused(detector, exported_detector, digits_root, capsys):
    classes = "test_dataloader.dataset.metainfo.classes=['a','b']"
    options = [*of_detector(digits_root), classes]
    message = tool_error(capsys, 'test', detector[0], exported_detector, *options)
    assert 'has the classes 0, 1, 2' in message and 'has a, b' in message


@pytest.mark.parametrize('option', ['--deploy', '--compile', '--tta'])
def test_options_of_checkpoints(option, detector, exported_detector, digits_root, capsys):
    options = of_detector(digits_root)
    message = tool_error(capsys, 'test', detector[0], exported_detector, option, *options)
    assert f'{option} works on a checkpoint' in message


def test_a_size_that_the_graph_does_not_take(segmentor, exported_segmentor, tmp_path, capsys):
    image = tmp_path / 'large.png'
    save_noise(image, 80, 80, np.random.default_rng(0))
    args = [
        image,
        '--out',
        tmp_path / 'out',
        '--cfg-options',
        'test_dataloader.dataset.pipeline.1.',
    ]
    message = tool_error(capsys, 'predict', segmentor[0], exported_segmentor, *args[:-2])
    assert f'takes images of {SIZE}×{SIZE} pixels' in message


def test_a_difference_beyond_the_tolerance_writes_nothing(segmentor, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    sizes = '--size', SIZE, SIZE
    args = '-o', path, '--tolerance', -1, '--check', 1, *sizes, '--backbone-only'
    message = tool_error(capsys, 'export', *segmentor, *args)
    assert 'differs from PyTorch on 1 images' in message
    assert not list(tmp_path.iterdir())


def test_the_features_of_a_backbone(segmentor, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    run_tool('export', *segmentor, '-o', path, '--backbone-only', '--check', 2)
    assert 'largest difference from PyTorch on 2 images' in capsys.readouterr().out
    with pytest.raises(LaunchError, match='--allow-pickle is for files whose author you trust'):
        open_model(path)
    found = open_model(path, allow_pickle=True)(np.zeros((1, 3, 97, 130), np.float32))
    assert found['feature0'].shape[1:] == (8, 24, 32)


def test_raw_outputs(detector, digits_root, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    run_tool('export', *detector, '-o', path, '--raw', '--size', SIZE, SIZE, '--check', 1)
    assert len(open_model(path).meta.outputs) == 6
    args = digits_root / 'images' / 'validation', '--out', tmp_path / 'out'
    assert 'holds raw outputs' in tool_error(capsys, 'predict', detector[0], path, *args)


def test_masks(digits_root, tmp_path):
    model = save_tiny_model(tmp_path, 'mask-rcnn')
    path = tmp_path / 'model.onnx'
    sizes = '--size', SIZE, SIZE
    run_tool('export', *model, '-o', path, '--check', 2, *sizes, *of_detector(digits_root))
    found = open_model(path)(np.zeros((1, 3, SIZE, SIZE), np.uint8))
    assert found['masks'].shape == (len(found['boxes']), 28, 28)


@pytest.mark.parametrize(
    'args, words',
    [
        (['-o', 'model.pth'], 'ends in .onnx, .xml, .pt2'),
        (['-o', 'model.onnx', '--format', 'openvino'], 'a file of openvino ends in .xml'),
        (['-o', 'model.onnx', '--check', 0], 'at least 1 image'),
        (['-o', 'model.onnx', '--int8'], '--int8 takes a whole model and --format openvino'),
        (['-o', 'model.xml', '--int8', '--calibrate', 4], '4 images are too few'),
        (['-o', 'model.onnx', '--cfg-options', 'model.bbox_head.num_classes=3'], 'does not fit'),
    ],
)
def test_bad_requests(args, words, detector, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in tool_error(capsys, 'export', *detector, *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['model.onnx', 'model.xml'])
def test_a_broken_file(name, tmp_path):
    (tmp_path / name).write_text('nothing')
    with pytest.raises(LaunchError, match='cannot load'):
        open_model(tmp_path / name)


def test_a_missing_file(detector, tmp_path, capsys):
    save_noise(tmp_path / 'image.png', 64, 64, np.random.default_rng(0))
    args = tmp_path / 'no.onnx', tmp_path, '--out', tmp_path / 'out'
    message = tool_error(capsys, 'predict', detector[0], *args)
    assert 'model file not found' in message
