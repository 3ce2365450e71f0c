"""``tools/predict.py`` with tiny models of both toolboxes."""

import json
import os
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from helpers import run_tool, tool_error
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from tiny_models import DIGITS, save_tiny_model, save_video

from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.engine.dataset_meta import dataset_meta
from mmpoolformer.engine.inputs import open_video, read_video
from mmpoolformer.utils.errors import LaunchError

ANY_SCORE = ['--device', 'cpu', '--score-thr', 0]


@pytest.fixture
def images(digits_root):
    return sorted((digits_root / 'images' / 'training').iterdir())


def read(out, name='predictions'):
    return json.loads((out / f'{name}.json').read_text())


def test_a_folder_of_images_for_a_detector(detector, images, tmp_path, capsys):
    run_tool('predict', *detector, images[0].parent, '--out', tmp_path, *ANY_SCORE)
    found = read(tmp_path)
    assert {entry['file_name'] for entry in found} == set(map(str, images))
    assert len(found) == 5 * len(images)
    for entry in found:
        assert entry['category_name'] == DIGITS[entry['category_id'] - 1]
        x, y, width, height = entry['bbox']
        assert min(x, y, width, height) >= 0 and x + width <= 64.01 and y + height <= 64.01
    for path in images:
        assert mmcv.imread(str(tmp_path / 'pictures' / f'{path.stem}.jpg')).shape == (64, 64, 3)
    assert f'{len(found)} detections' in capsys.readouterr().out


def test_results_load_with_pycocotools(detector, images, tmp_path):
    run_tool('predict', *detector, *images, '--out', tmp_path, '--no-pictures', *ANY_SCORE)
    coco = COCO(tmp_path / 'images.json').loadRes(str(tmp_path / 'predictions.json'))
    assert len(coco.getImgIds()) == len(images)
    assert [cat['name'] for cat in coco.loadCats(coco.getCatIds())] == list(DIGITS)
    assert not (tmp_path / 'pictures').exists()


def test_masks_are_in_the_results(images, tmp_path):
    model = save_tiny_model(tmp_path, 'mask-rcnn')
    run_tool('predict', *model, images[0], '--out', tmp_path, *ANY_SCORE)
    found = read(tmp_path)
    assert found
    for entry in found:
        assert rle.decode(entry['segmentation']).shape == (64, 64)


def test_label_maps_of_a_segmentor(segmentor, images, tmp_path):
    run_tool('predict', *segmentor, images[0].parent, '--out', tmp_path, '--device', 'cpu')
    values = {entry['value'] for entry in read(tmp_path, 'classes')['classes']}
    assert len(values) == 7
    for path in images:
        labels = np.asarray(Image.open(tmp_path / 'labels' / f'{path.stem}.png'))
        assert labels.shape == (64, 64) and set(np.unique(labels)) <= values
        assert (tmp_path / 'pictures' / f'{path.stem}.jpg').is_file()


def test_predictions_are_those_of_the_inferencer(detector, images, tmp_path):
    from mmdet.apis import DetInferencer

    run_tool('predict', *detector, images[0], '--out', tmp_path, *ANY_SCORE)
    inferencer = DetInferencer(*map(str, detector), device='cpu', show_progress=False)
    (expected,) = inferencer(str(images[0]))['predictions']
    found = read(tmp_path)
    assert [entry['category_id'] - 1 for entry in found] == expected['labels']
    scores = [entry['score'] for entry in found]
    np.testing.assert_allclose(scores, expected['scores'], atol=1e-5)


def test_batches_predict_the_same(detector, images, coco_root, tmp_path):
    inputs = [*images, *sorted((coco_root / 'val2017').iterdir())]  # of three sizes
    for size in (1, 3):
        out = tmp_path / str(size)
        options = ['--out', out, '--batch-size', size, '--no-pictures', *ANY_SCORE]
        run_tool('predict', *detector, *inputs, *options)
    one, three = read(tmp_path / '1'), read(tmp_path / '3')
    assert [entry['image_id'] for entry in one] == [entry['image_id'] for entry in three]
    for key in ('score', 'bbox'):
        values = [[entry[key] for entry in found] for found in (one, three)]
        np.testing.assert_allclose(*values, atol=0.02)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_a_video_becomes_a_video(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    save_video(tmp_path / 'clip.avi', frames=4)
    run_tool('predict', *model, tmp_path / 'clip.avi', '--out', tmp_path, *ANY_SCORE)
    video = mmcv.VideoReader(str(tmp_path / 'pictures' / 'clip.mp4'))
    assert (len(video), video.resolution, video.fps) == (4, (64, 48), 10)
    if kind == 'detector':
        assert [image['frame'] for image in read(tmp_path, 'images')['images']] == [0, 1, 2, 3]
    else:
        assert len(list((tmp_path / 'labels' / 'clip').glob('*.png'))) == 4


def test_a_frame_is_predicted_as_its_image_is(detector, tmp_path):
    save_video(tmp_path / 'clip.avi', frames=1)
    pixels = mmcv.VideoReader(str(tmp_path / 'clip.avi'))[0]
    mmcv.imwrite(pixels, str(tmp_path / 'frame.png'))
    names = tmp_path / 'frame.png', tmp_path / 'clip.avi'
    run_tool('predict', *detector, *names, '--out', tmp_path, '--no-pictures', *ANY_SCORE)
    found = read(tmp_path)
    of_image, of_frame = ([e for e in found if e['image_id'] == i] for i in (1, 2))
    assert [e['bbox'] for e in of_image] == [e['bbox'] for e in of_frame]


def test_a_video_that_does_not_say_how_long_it_is_is_read_whole(tmp_path):
    path = tmp_path / 'clip.mkv'
    code = cv2.VideoWriter_fourcc(*'MJPG')
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 10, (64, 64))
    for brightness in range(0, 240, 20):
        writer.write(np.full((64, 64, 3), brightness, np.uint8))
    writer.release()
    content = path.read_bytes()
    start = content.index(b'\x44\x89\x88')  # Matroska's duration, which a void takes the place of
    path.write_bytes(content[:start] + b'\xec\x89' + bytes(9) + content[start + 11 :])
    broken = []
    frames = list(read_video(path, open_video(path, broken), broken))
    assert [round(frame.source.mean() / 20) for frame in frames] == list(range(12))
    assert [frame.index for frame in frames] == list(range(12)) and not broken


def test_a_glob_and_files_of_one_name(detector, images, tmp_path):
    (tmp_path / 'other').mkdir()
    shutil.copy(images[0], tmp_path / 'other')
    names = images[0].parent / '*.jpg', tmp_path / '*' / '*.jpg'
    run_tool('predict', *detector, *names, '--out', tmp_path / 'out', *ANY_SCORE)
    pictures = {path.name for path in (tmp_path / 'out' / 'pictures').iterdir()}
    expected = {f'{path.stem}.jpg' for path in images} | {f'{images[0].stem}_2.jpg'}
    assert pictures == expected


def test_broken_inputs_are_named_and_passed_over(detector, images, tmp_path, capsys):
    for path in images:
        shutil.copy(path, tmp_path)
    broken = tmp_path / images[1].name
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / 'no.mp4').write_text('no video')
    with pytest.raises(SystemExit) as stop:
        run_tool('predict', *detector, tmp_path, '--out', tmp_path / 'out', *ANY_SCORE)
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert f'passed over: {broken}: damaged image' in message
    assert f'passed over: {tmp_path / "no.mp4"}: no frame' in message
    assert len(list((tmp_path / 'out' / 'pictures').iterdir())) == len(images) - 1


@pytest.mark.parametrize('start', ['#EXTM3U\n', 'ffconcat version 1.0\n', 'ID3\3\0\0'])
def test_a_list_of_other_files_is_no_video(start, tmp_path):
    broken = []
    (tmp_path / 'a.mp4').write_text(f'{start}/elsewhere.mp4\n')
    assert open_video(tmp_path / 'a.mp4', broken) is None
    assert 'a list of other files' in broken[0]


def test_a_pipe_is_no_video(tmp_path):
    broken = []
    os.mkfifo(tmp_path / 'a.mp4')
    assert open_video(tmp_path / 'a.mp4', broken) is None
    assert 'no regular file' in broken[0]


def test_a_video_that_breaks_off_is_named(detector, tmp_path, capsys):
    path = tmp_path / 'clip.avi'
    save_video(path, frames=30)
    content = path.read_bytes()
    index = content.rindex(b'idx1')
    path.write_bytes(content[: index // 2] + bytes(index - index // 2) + content[index:])
    with pytest.raises(SystemExit) as stop:
        run_tool('predict', *detector, path, '--out', tmp_path, *ANY_SCORE)
    assert stop.value.code == 1
    assert 'breaks off after' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name, message',
    [
        ('nowhere.jpg', 'input not found'),
        ('*.jpg', 'no image and no video matches'),
        ('', 'has no image and no video'),
    ],
)
def test_an_input_without_images_is_an_error_before_the_model(name, message, tmp_path, capsys):
    error = tool_error(capsys, 'predict', 'no.py', 'no.pth', tmp_path / name)
    assert message in error and 'no.py' not in error


def test_only_the_classes_that_are_wanted(detector, segmentor, images, tmp_path):
    every, some = tmp_path / 'every', tmp_path / 'some'
    run_tool('predict', *detector, images[0], '--out', every, *ANY_SCORE)
    wanted = read(every)[0]['category_name']
    run_tool('predict', *detector, images[0], '--out', some, '--classes', wanted, *ANY_SCORE)
    expected = [entry for entry in read(every) if entry['category_name'] == wanted]
    assert read(some) == expected

    run_tool('predict', *segmentor, images[0], '--out', every, '--device', 'cpu')
    whole = np.asarray(Image.open(every / 'labels' / f'{images[0].stem}.png'))
    classes = read(every, 'classes')['classes']
    name = classes[whole[0, 0]]['name']
    options = ['--out', some, '--device', 'cpu', '--classes', name]
    run_tool('predict', *segmentor, images[0], *options)
    part = np.asarray(Image.open(some / 'labels' / f'{images[0].stem}.png'))
    assert np.array_equal(part, np.where(whole == whole[0, 0], whole, 255))


def test_the_threshold_holds_for_results_and_pictures(detector, images, tmp_path):
    image = mmcv.imread(str(images[0])).astype(int)
    drawn = {}
    for threshold in (0, 1.01):
        out = tmp_path / str(threshold)
        options = ['--device', 'cpu', '--score-thr', threshold, '--out', out]
        run_tool('predict', *detector, images[0], *options)
        picture = mmcv.imread(str(out / 'pictures' / f'{images[0].stem}.jpg'))
        drawn[threshold] = np.abs(picture - image).mean()
    assert read(tmp_path / '1.01') == []
    # Not zero: on the classic stack, mmengine shifts small images by a pixel.
    assert drawn[1.01] < drawn[0] / 2


@pytest.mark.parametrize(
    'kind, step', [('detector', dict(type='RandomFlip', prob=1.0)), ('segmentor', dict(type='Pad'))]
)
def test_a_pipeline_that_moves_what_is_predicted(kind, step, request, images, tmp_path, capsys):
    config, checkpoint = request.getfixturevalue(kind)
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.pipeline.insert(1, step)
    cfg.dump(tmp_path / 'moved.py')
    args = [tmp_path / 'moved.py', checkpoint, images[0], '--out', tmp_path]
    assert f'{step["type"]} ' in tool_error(capsys, 'predict', *args)


def test_an_unknown_class_is_named(detector, images, tmp_path, capsys):
    options = ['--out', tmp_path, '--device', 'cpu', '--classes', 'zero']
    error = tool_error(capsys, 'predict', *detector, images[0], *options)
    assert "no class 'zero'" in error and '0, 1, 2' in error


def test_deploy_and_compile_predict_the_same(segmentor, images, tmp_path):
    plain, folded = tmp_path / 'plain', tmp_path / 'folded'
    run_tool('predict', *segmentor, images[0], '--out', plain, '--device', 'cpu')
    run_tool('predict', *segmentor, images[0], '--out', folded, '--device', 'cpu', '--deploy')
    labels = [np.asarray(Image.open(next(out.glob('labels/*.png')))) for out in (plain, folded)]
    assert (labels[0] == labels[1]).mean() > 0.99


def test_compile_compiles_the_backbone(segmentor, images, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda f, **options: compiled.append(f) or f)
    options = ['--out', tmp_path, '--device', 'cpu', '--compile']
    run_tool('predict', *segmentor, images[0], *options)
    assert [type(f.__self__).__name__ for f in compiled] == ['PoolFormer']


def test_other_classes_than_the_heads_have_are_named(images, tmp_path, capsys):
    model = save_tiny_model(tmp_path, 'retinanet', meta=dict(classes=('cat', 'dog', 'cow')))
    error = tool_error(capsys, 'predict', *model, images[0], '--out', tmp_path)
    assert '3 classes (cat, dog, cow)' in error and 'model.bbox_head.num_classes=10' in error


def test_a_panoptic_model_has_the_classes_of_things_and_of_stuff():
    name = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(find_config(name), import_custom_modules=False)
    cfg.load_from = 'panoptic.pth'
    assert len(dataset_meta(cfg, {})['classes']) == 133  # COCO's 80 things and 53 kinds of stuff
    things = dict(meta=dict(dataset_meta=dict(classes=list(map(str, range(80))))))
    with pytest.raises(LaunchError, match=r'has 80 classes .*num_stuff_classes=133'):
        dataset_meta(cfg, things)


def test_other_names_than_the_config_has_are_named(images, tmp_path, capsys):
    names = tuple('abcdefghij')
    model = save_tiny_model(tmp_path, 'retinanet', meta=dict(classes=names))
    error = tool_error(capsys, 'predict', *model, images[0], '--out', tmp_path)
    assert 'has the classes a, b, c' in error and 'that it was trained with' in error


def test_colours_of_a_config_may_be_lists(images, tmp_path):
    config, checkpoint = save_tiny_model(tmp_path, 'retinanet')
    palette = [[number, 0, 0] for number in range(10)]
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.metainfo.palette = palette
    cfg.dump(config)
    run_tool('predict', config, checkpoint, images[0], '--out', tmp_path, *ANY_SCORE)
    assert (tmp_path / 'pictures' / f'{images[0].stem}.jpg').is_file()


@pytest.mark.parametrize('name', ['retinanet', 'sem-fpn'])
def test_weights_alone_take_the_classes_of_the_config(name, images, tmp_path):
    config, checkpoint = save_tiny_model(tmp_path, name)
    torch.save(torch.load(checkpoint, weights_only=False)['state_dict'], checkpoint)
    run_tool('predict', config, checkpoint, images[0], '--out', tmp_path, *ANY_SCORE)
    if name == 'retinanet':
        assert read(tmp_path)[0]['category_name'] in DIGITS
    else:
        assert 'brick' in {entry['name'] for entry in read(tmp_path, 'classes')['classes']}


def test_the_type_of_a_data_set_tells_its_classes(images, tmp_path, capsys):
    config, checkpoint = save_tiny_model(tmp_path, 'retinanet')
    torch.save(torch.load(checkpoint, weights_only=False)['state_dict'], checkpoint)
    options = ['--out', tmp_path, '--cfg-options', 'test_dataloader.dataset.metainfo=None']
    error = tool_error(capsys, 'predict', config, checkpoint, images[0], *options)
    assert 'the test set has 80 classes (person, bicycle' in error


def test_weights_that_do_not_fit_are_named(detector, segmentor, images, tmp_path, capsys):
    error = tool_error(capsys, 'predict', detector[0], segmentor[1], images[0], '--out', tmp_path)
    assert str(segmentor[1]) in error


@pytest.mark.parametrize(
    'change, word',
    [
        (lambda key, value: {key: value * float('nan')}, 'NaN or Inf in backbone'),
        (lambda key, value: {key: (100 * value).to(torch.int8)}, 'torch.int8 in backbone'),
        (lambda key, value: {key: value + 1j}, 'torch.complex64 in backbone'),
        (lambda key, value: {key: value, f'module.{key}': 0 * value}, 'twice'),
        (lambda key, value: {key: value, f'module_{key}': 0 * value}, 'twice'),
    ],
    ids=['nan', 'int8', 'complex', 'twice', 'twice by pattern'],
)
@pytest.mark.parametrize('tool', ['predict', 'test'])
def test_weights_that_are_none_are_named(
    tool, change, word, segmentor, digits_root, images, tmp_path, capsys
):
    config, checkpoint = segmentor
    weights = torch.load(checkpoint, weights_only=True)
    key = 'backbone.patch_embed.proj.weight'
    weights['state_dict'].update(change(key, weights['state_dict'][key]))
    torch.save(weights, tmp_path / 'bad.pth')
    more = dict(
        predict=[images[0], '--out', tmp_path],
        test=[
            '--work-dir',
            tmp_path,
            '--cfg-options',
            f'test_dataloader.dataset.data_root={digits_root}',
        ],
    )[tool]
    assert word in tool_error(capsys, tool, config, tmp_path / 'bad.pth', *more)


@pytest.mark.parametrize('tool', ['predict', 'test'])
@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_weights_that_put_out_nan_are_named(
    kind, tool, request, digits_root, images, tmp_path, capsys
):
    config, checkpoint = request.getfixturevalue(kind)
    weights = torch.load(checkpoint, weights_only=False)
    for key, value in weights['state_dict'].items():
        if key.startswith('backbone') and 'layer_scale_2' in key:
            value.fill_(3e38)
    torch.save(weights, tmp_path / 'bad.pth')
    options = [f'test_dataloader.dataset.data_root={digits_root}/']
    if kind == 'detector':
        truth = f'{digits_root}/annotations/instances_validation.json'
        options.append(f'test_evaluator.ann_file={truth}')
    more = dict(
        predict=[images[0], '--out', tmp_path],
        test=['--work-dir', tmp_path, '--cfg-options', *options],
    )[tool]
    assert 'puts out NaN' in tool_error(capsys, tool, config, tmp_path / 'bad.pth', *more)


def test_the_config_inside_a_checkpoint_is_not_executed(detector, images, tmp_path):
    checkpoint = torch.load(detector[1], weights_only=False)
    code = f"open({str(tmp_path / 'executed')!r}, 'w')"
    checkpoint['meta'].update(cfg=code, config=code)
    checkpoint['message_hub'] = dict(runtime_info=dict(cfg=code))
    torch.save(checkpoint, tmp_path / 'hostile.pth')
    model = detector[0], tmp_path / 'hostile.pth'
    run_tool('predict', *model, images[0], '--out', tmp_path / 'out', *ANY_SCORE)
    assert not (tmp_path / 'executed').exists()


def test_a_gpu_that_is_not_there_is_named(detector, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    options = ['--out', tmp_path, '--device', 'cuda:0']
    error = tool_error(capsys, 'predict', *detector, images[0], *options)
    assert 'finds 0 GPUs' in error and '--device cpu' in error


def test_inputs_are_not_drawn_over(detector, images, tmp_path, capsys):
    (tmp_path / 'pictures').mkdir()
    image = Path(shutil.copy(images[0], tmp_path / 'pictures'))
    error = tool_error(capsys, 'predict', *detector, image, '--out', tmp_path)
    assert 'another --out' in error


@pytest.mark.parametrize(
    'classes',
    [['\x1b]0;owned'] * 10, ['a' * 300] * 10, list(range(10)), [['a']] * 10, 'abcdefghij'],
    ids=['escapes', 'long', 'numbers', 'lists', 'text'],
)
def test_classes_of_a_checkpoint_that_are_no_names(classes, images, tmp_path, capsys):
    model = save_tiny_model(tmp_path, 'retinanet', meta=dict(classes=classes))
    words = tool_error(capsys, 'predict', *model, images[0], '--out', tmp_path, *ANY_SCORE)
    assert 'no printable names' in words


@pytest.mark.parametrize('colour', [-1, 10**30, 'x' * 3, (1, 2), [0, 0, 256]], ids=str)
def test_colours_of_a_checkpoint_that_are_none(colour, images, tmp_path):
    meta = dict(classes=DIGITS, palette=[colour] * 10)
    model = save_tiny_model(tmp_path, 'retinanet', meta=meta)
    run_tool('predict', *model, images[0], '--out', tmp_path, *ANY_SCORE)
    assert (tmp_path / 'pictures' / f'{images[0].stem}.jpg').is_file()


def test_names_with_spaces_behind_them_are_the_same(images, tmp_path):
    """ADE20K has had "bed " for "bed"."""
    config, weights = save_tiny_model(tmp_path, 'retinanet')
    content = torch.load(weights, weights_only=False)
    classes = content['meta']['dataset_meta']['classes']
    content['meta']['dataset_meta']['classes'] = (f'{classes[0]} ', *classes[1:])
    torch.save(content, weights)
    run_tool('predict', config, weights, images[0], '--out', tmp_path / 'out', *ANY_SCORE)
