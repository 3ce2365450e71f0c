"""``tools/export.py``, and ``tools/test.py`` and ``tools/predict.py`` on what it writes."""

import json

import numpy as np
import pytest
import torch
from helpers import require_export, run_tool, save_noise, tool_error
from tiny_models import save_tiny_model

from mmpoolformer.exporting import open_model
from mmpoolformer.utils.errors import LaunchError

require_export()

DETECTOR = 'my_detector.py', 'my_detector.pth'
SEGMENTOR = 'my_segmentor.py', 'my_segmentor.pth'
ONNX, OPENVINO, ONE_SIZE = 'my_detector.onnx', 'my_segmentor.xml', 'my_segmentor_320.onnx'
SIZE = 320
# Of those that a file may need, what onnx-tensorrt's docs/operators.md has for TensorRT 10.1.
TENSORRT = (
    'Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape '
    'Conv ConvTranspose CumSum Div Equal Erf Exp Expand Flatten Floor Gather GatherElements '
    'GatherND Gemm Greater GreaterOrEqual Identity If InstanceNormalization LayerNormalization '
    'Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg NonMaxSuppression NonZero Not Or Pad '
    'Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize '
    'RoiAlign Round ScatterElements ScatterND Shape Sigmoid Sign Slice Softmax Split Sqrt Squeeze '
    'Sub Tile TopK Transpose Unsqueeze Where Xor'
)


def metrics(model, work_dir):
    """What tools/test.py finds with a checkpoint or a model file."""
    config = DETECTOR[0] if 'detector' in model else SEGMENTOR[0]
    run_tool('test', config, model, '--work-dir', work_dir)
    return json.loads((work_dir / 'test_metrics.json').read_text())


def test_a_detector_has_the_map_of_its_checkpoint(here, tmp_path):
    theirs, ours = metrics(DETECTOR[1], tmp_path / 'torch'), metrics(ONNX, tmp_path / 'onnx')
    assert ours['coco/bbox_mAP'] == pytest.approx(theirs['coco/bbox_mAP'], abs=1e-3)


def test_a_segmentor_has_the_miou_of_its_checkpoint(here, tmp_path):
    theirs, ours = metrics(SEGMENTOR[1], tmp_path / 'torch'), metrics(OPENVINO, tmp_path / 'vino')
    assert ours['mIoU'] == pytest.approx(theirs['mIoU'], abs=0.05)


def test_predict_takes_a_model_file(here, tmp_path):
    options = '--device', 'cpu', '--score-thr', 0, '--no-pictures'
    found = []
    for model in (DETECTOR[1], ONNX):
        run_tool('predict', DETECTOR[0], model, 'photos', '--out', tmp_path / model, *options)
        entries = json.loads((tmp_path / model / 'predictions.json').read_text())
        found.append(sorted(entry['score'] for entry in entries))
    np.testing.assert_allclose(*found, atol=1e-3)


def test_one_file_for_all_sizes(here):
    model = open_model(ONNX)
    for size in ((320, 320), (97, 201)):
        image = np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8)
        found = model(image)
        assert set(found) == {'boxes', 'scores', 'labels'} and len(found['boxes']) == 5
        assert (found['boxes'] >= 0).all() and (found['boxes'] <= max(size)).all()


def operators(path):
    import onnx

    return {node.op_type for node in onnx.load(str(path)).graph.node}


def test_the_operators_are_those_that_tensorrt_documents(here):
    assert not (operators(ONNX) | operators(ONE_SIZE)) - set(TENSORRT.split())


def test_a_file_says_what_it_is(here):
    meta = open_model(ONE_SIZE).meta
    assert meta.kind == 'segmentor' and len(meta.classes) == 7 and meta.heights == [SIZE, SIZE]


def test_an_int8_file_says_how_it_was_made(here):
    int8 = open_model('my_segmentor_int8.xml').meta.int8
    assert int8['calibrated_on'] == 16 and int8['in_float'] == [] and 'mIoU' in int8['metrics']


@pytest.mark.parametrize(
    'option, words',
    [
        ('model.test_cfg.score_thr=0.5', 'model.test_cfg.score_thr=0.0 and 0.5'),
        ("test_dataloader.dataset.metainfo.classes=['a','b']", 'has the classes 0, 1, 2'),
    ],
)
def test_another_config_is_refused(option, words, here, capsys):
    assert words in tool_error(capsys, 'test', DETECTOR[0], ONNX, '--cfg-options', option)


@pytest.mark.parametrize('option', ['--deploy', '--compile', '--tta'])
def test_options_of_checkpoints(option, here, capsys):
    message = tool_error(capsys, 'test', DETECTOR[0], ONNX, option)
    assert f'{option} works on a checkpoint' in message


def test_a_size_that_the_graph_does_not_take(here, tmp_path, capsys):
    image = tmp_path / 'large.png'
    save_noise(image, 80, 80, np.random.default_rng(0))
    message = tool_error(
        capsys, 'predict', SEGMENTOR[0], ONE_SIZE, image, '--out', tmp_path / 'out'
    )
    assert f'takes images of {SIZE}×{SIZE} pixels' in message


def test_a_difference_beyond_the_tolerance_writes_nothing(segmentor, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    args = '-o', path, '--tolerance', -1, '--check', 1, '--size', 64, 64, '--backbone-only'
    message = tool_error(capsys, 'export', *segmentor, *args)
    assert 'differs from PyTorch on 1 images' in message
    assert not list(tmp_path.iterdir())


def test_a_comparison_of_nothing_is_said_to_be_one(detector, tmp_path, capsys):
    options = '--size', 64, 64, '--check', 1, '--cfg-options', 'model.test_cfg.score_thr=0.9999'
    run_tool('export', *detector, '-o', tmp_path / 'model.onnx', *options)
    assert 'the model finds nothing on the 1 images' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('option', 'more', 'words'),
    [
        ('test_dataloader.dataset.pipeline.0.imdecode_backend=tifffile', (), 'loads RGB'),
        ('model.data_preprocessor.rgb_to_bgr=True', (), 'rgb_to_bgr=True'),
        ('model.data_preprocessor.rgb_to_bgr=True', ('--raw',), 'rgb_to_bgr=True'),
    ],
)
def test_another_order_of_colours_is_refused(option, more, words, segmentor, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    args = '-o', path, *more, '--size', 64, 64, '--cfg-options', option
    assert words in tool_error(capsys, 'export', *segmentor, *args)
    assert not path.exists()


def test_the_features_of_a_backbone(segmentor, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    sizes = '--check', 1, '--check-sizes', '64x99'
    run_tool('export', *segmentor, '-o', path, '--backbone-only', *sizes)
    assert 'largest difference from PyTorch on 2 images' in capsys.readouterr().out
    with pytest.raises(LaunchError, match='--allow-pickle is for files whose author you trust'):
        open_model(path)
    found = open_model(path, allow_pickle=True)(np.zeros((1, 3, 97, 130), np.float32))
    assert found['feature0'].shape[1:] == (8, 24, 32)


def test_raw_outputs(detector, digits_root, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    run_tool('export', *detector, '-o', path, '--raw', '--size', 64, 64, '--check', 1)
    assert len(open_model(path).meta.outputs) == 6
    args = digits_root / 'images' / 'validation', '--out', tmp_path / 'out'
    assert 'holds raw outputs' in tool_error(capsys, 'predict', detector[0], path, *args)


def test_masks(tmp_path):
    (config, checkpoint), path = save_tiny_model(tmp_path, 'mask-rcnn'), tmp_path / 'model.onnx'
    # Training brings most regions to such scores, which ONNX Runtime's Sigmoid makes zero.
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict']['rpn_head.rpn_cls.bias'] -= 25
    torch.save(content, checkpoint)
    run_tool('export', config, checkpoint, '-o', path, '--check', 2, '--size', 64, 64)
    found = open_model(path)(np.zeros((1, 3, 64, 64), np.uint8))
    assert found['masks'].shape == (len(found['boxes']), 28, 28)
    assert not operators(path) - set(TENSORRT.split())


@pytest.mark.parametrize(
    'args, words',
    [
        (['-o', 'model.pth'], 'ends in .onnx, .xml, .pt2'),
        (['-o', 'model.onnx', '--format', 'openvino'], 'a file of openvino ends in .xml'),
        (['-o', 'model.onnx', '--check', 0], 'at least 1 image'),
        (['-o', 'a.onnx', '--size', 64, 64, '--check-sizes', '32x64'], 'takes 64x64 alone'),
        (['-o', 'a.onnx', '--size', 0, 64], '0x64: sides have 32 pixels at least'),
        (['-o', 'a.onnx', '--check-sizes', '64x5'], '64x5: sides have 32 pixels at least'),
        (['-o', 'a.onnx', '--calibrate', 16], '--calibrate is for --int8'),
        (['-o', 'model.onnx', '--int8'], '--int8 takes a whole model and --format openvino'),
        (['-o', 'model.xml', '--int8', '--calibrate', 4], '4 images are too few'),
        (['-o', 'model.onnx', '--cfg-options', 'model.bbox_head.num_classes=3'], 'does not fit'),
    ],
)
def test_bad_requests(args, words, detector, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in tool_error(capsys, 'export', *detector, *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'checkpoint, out, words',
    [
        (None, 'folder.onnx', 'folder.onnx is a folder'),
        (None, 'weights.xml', 'would replace weights.bin, which belongs to another file'),
        ('weights.bin', 'weights.xml', 'would replace weights.bin: give another name'),
        ('model.onnx', 'other.onnx', 'model.onnx is a model file'),
    ],
)
def test_nothing_else_is_written_over(
    checkpoint, out, words, detector, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'weights.bin').write_bytes(b'precious')
    config, own = detector
    assert words in tool_error(capsys, 'export', config, checkpoint or own, '-o', out)
    assert (tmp_path / 'weights.bin').read_bytes() == b'precious'


def test_missing_weights_of_openvino(tmp_path):
    (tmp_path / 'model.xml').write_text('<net/>')
    with pytest.raises(LaunchError, match=r'model.bin is missing'):
        open_model(tmp_path / 'model.xml')


@pytest.mark.parametrize('name', ['model.onnx', 'model.xml'])
def test_a_broken_file(name, tmp_path):
    (tmp_path / name).write_text('nothing')
    (tmp_path / 'model.bin').touch()  # weights of the second
    with pytest.raises(LaunchError, match=r'cannot load .*: (?!Exception from)'):
        open_model(tmp_path / name)


def test_a_missing_file(detector, tmp_path, capsys):
    save_noise(tmp_path / 'image.png', 64, 64, np.random.default_rng(0))
    args = tmp_path / 'no.onnx', tmp_path, '--out', tmp_path / 'out'
    message = tool_error(capsys, 'predict', detector[0], *args)
    assert 'model file not found' in message
