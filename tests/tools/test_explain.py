"""``tools/explain.py`` with tiny models of both toolboxes, and what Grad-CAM must give."""

import re
import shutil
import sys

import mmcv
import numpy as np
import pytest
import torch
from helpers import run_tool, tool_error
from mmengine.structures import BaseDataElement
from tiny_models import BACKBONE, DIGITS, save_tiny_model, save_video

from mmpoolformer.engine.explaining import METHODS, _resized
from mmpoolformer.engine.inputs import Frame

grad_cam = pytest.importorskip('pytorch_grad_cam')

CPU = ['--device', 'cpu']
POOLING = ['pooling'] * 4
MIXED = ['pooling', 'sep_conv', 'pooling', 'identity']
ATTENTION = ['pooling', 'pooling', 'attention', 'attention']


@pytest.fixture
def image(digits_root):
    return min((digits_root / 'images' / 'training').iterdir())


@pytest.fixture
def gradients(monkeypatch):
    """The largest gradient of each stage that the library saw."""
    largest = []
    weigh = grad_cam.GradCAM.get_cam_weights

    def note(self, images, layer, targets, activations, grads):
        largest.append(np.abs(grads).max())
        return weigh(self, images, layer, targets, activations, grads)

    monkeypatch.setattr(grad_cam.GradCAM, 'get_cam_weights', note)
    return largest


def explainer_of(model, *options):
    """What the tool makes of the command line."""
    import argparse

    from mmpoolformer.engine.explaining import Explainer
    from mmpoolformer.engine.inference import add_inference_arguments, load_inferencer

    parser = argparse.ArgumentParser()
    add_inference_arguments(parser)
    args = parser.parse_args([*map(str, model), 'any.jpg', *CPU, *options])
    return Explainer(load_inferencer(args))


def explain(model, image, category=None):
    return explainer_of(model).explain(Frame(image, str(image)), category)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_pictures_of_cams_and_features(kind, request, image, tmp_path, capsys):
    run_tool('explain', *request.getfixturevalue(kind), image, '--out', tmp_path, *CPU)
    for name in ('cam', 'features'):
        picture = mmcv.imread(str(tmp_path / f'{image.stem}_{name}.png'))
        assert picture.shape[1] > 4 * picture.shape[0]  # five panels, or four and the image
        assert picture.std() > 10
    (title,) = re.findall(rf'^{image}: (.*)$', capsys.readouterr().out, flags=re.M)
    assert title.split()[0] in DIGITS if kind == 'detector' else '% of the pixels' in title


@pytest.mark.parametrize('mixers', [POOLING, MIXED, ATTENTION], ids=['pool', 'mixed', 'attention'])
@pytest.mark.parametrize('name', ['mask-rcnn', 'sem-fpn'])
def test_gradients_reach_every_stage_of_every_mixer(name, mixers, image, tmp_path, gradients):
    arch = dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))
    backbone = dict(type='MetaFormer', arch=arch, token_mixers=mixers)
    explanation = explain(save_tiny_model(tmp_path, name, backbone), image)
    assert explanation.cams.shape == (4, 64, 64)
    assert len(gradients) == 4 and min(gradients) > 0
    assert [len(f) * 2**i for i, f in enumerate(explanation.features)] == [
        len(explanation.features[0])
    ] * 4


def test_fused_and_plain_blocks_are_explained_the_same(segmentor, image):
    explainer = explainer_of(segmentor)
    frame, cams = Frame(image, str(image)), {}
    for way in ('fused', 'plain'):
        explainer.inferencer.model.backbone.token_mixing = way
        cams[way] = explainer.explain(frame).cams
    np.testing.assert_allclose(cams['fused'], cams['plain'], atol=1e-3)


def test_cams_are_the_gradients_times_the_features(segmentor, image):
    explainer = explainer_of(segmentor)
    inferencer = explainer.inferencer
    model, kept = inferencer.model, {}
    explanation = explainer.explain(Frame(image, str(image)))
    hook = explainer.layers[2].register_forward_hook(
        lambda module, args, output: kept.update(features=output)
    )
    data = inferencer.collate_fn([inferencer.pipeline(str(image))])
    batch = model.data_preprocessor(data, False)
    (found,) = model(batch['inputs'], batch['data_samples'], mode='predict')
    hook.remove()
    logits = found.seg_logits.data
    labels = logits.argmax(0)
    category = labels.flatten().mode().values
    score = logits[category][labels == category].sum()
    (gradients,) = torch.autograd.grad(score, kept['features'])
    weights = gradients.mean((2, 3), keepdim=True)
    expected = (weights * kept['features']).sum(1).relu()[0].detach()
    small = torch.nn.functional.interpolate(
        torch.from_numpy(explanation.cams[2])[None, None], expected.shape, mode='area'
    )[0, 0]
    correlation = np.corrcoef(small.flatten(), expected.flatten())[0, 1]
    assert correlation > 0.95


def test_hires_cam_is_another_map(segmentor, image):
    from mmpoolformer.engine.explaining import Explainer

    inferencer = explainer_of(segmentor).inferencer
    frame = Frame(image, str(image))
    one, other = (Explainer(inferencer, name).explain(frame) for name in METHODS)
    assert one.title == other.title and np.abs(one.cams - other.cams).max() > 0.1


def test_a_frozen_backbone_is_explained(image, tmp_path, gradients):
    backbone = dict(type='PoolFormer', frozen_stages=4, with_cp=True, **BACKBONE)
    explain(save_tiny_model(tmp_path, 'sem-fpn', backbone), image)
    assert len(gradients) == 4 and min(gradients) > 0


def test_the_class_of_the_command_line_is_explained(detector, image, tmp_path, capsys):
    titles = set()
    for name in DIGITS:
        try:
            run_tool('explain', *detector, image, '--class', name, '--out', tmp_path, *CPU)
        except SystemExit as stop:  # not among the best boxes
            assert stop.code == 1
            assert f'no {name!r} is detected' in capsys.readouterr().err
        else:
            titles.add(name)
            assert f': {name} 0.' in capsys.readouterr().out
    assert titles


def test_a_class_without_pixels_is_named(segmentor, image):
    from mmpoolformer.utils.errors import DataError

    explainer = explainer_of(segmentor)
    problems = []
    for category in range(7):
        try:
            explainer.explain(Frame(image, str(image)), category)
        except DataError as error:
            problems.append(str(error))
    assert problems and all('no pixel is' in problem for problem in problems)


def test_only_the_stages_that_are_wanted(segmentor, image, tmp_path):
    widths = []
    for stages in ([2], [0, 1, 2]):
        run_tool('explain', *segmentor, image, '--out', tmp_path, *CPU, '--stage', *stages)
        widths.append(mmcv.imread(str(tmp_path / f'{image.stem}_cam.png')).shape[1])
    assert widths[1] == 2 * widths[0]


def test_a_stage_that_is_not_there_is_named(segmentor, image, tmp_path, capsys):
    options = ['--out', tmp_path, *CPU, '--stage', 4]
    error = tool_error(capsys, 'explain', *segmentor, image, *options)
    assert '--stage 4' in error and '0 to 3' in error


def test_broken_images_are_named_and_passed_over(segmentor, image, tmp_path, capsys):
    shutil.copy(image, tmp_path / 'good.jpg')
    (tmp_path / 'bad.jpg').write_bytes(image.read_bytes()[:200])
    with pytest.raises(SystemExit) as stop:
        run_tool('explain', *segmentor, tmp_path, '--out', tmp_path / 'out', *CPU)
    assert stop.value.code == 1
    assert 'bad.jpg: damaged image' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'good_cam.png').is_file()


def test_another_backbone_is_refused(image, tmp_path, capsys):
    backbone = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)
    model = save_tiny_model(tmp_path, 'sem-fpn', backbone)
    error = tool_error(capsys, 'explain', *model, image, '--out', tmp_path, *CPU)
    assert 'ResNet' in error and 'swap_backbone' in error


def test_a_video_is_refused(segmentor, tmp_path, capsys):
    save_video(tmp_path / 'clip.avi', frames=1)
    error = tool_error(capsys, 'explain', *segmentor, tmp_path / 'clip.avi', *CPU)
    assert 'clip.avi is a video' in error


def test_a_missing_library_is_named_with_its_remedy(segmentor, image, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    error = tool_error(capsys, 'explain', *segmentor, image, *CPU)
    assert 'pip install --no-deps grad-cam' in error


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(scale_factor=(0.5, 0.25), img_shape=(64, 64)), (25, 40)),  # of width and height
        (dict(scale_factor=(0.5, 0.5), img_shape=(49, 40)), (49, 40)),
        (dict(img_shape=(64, 64)), (64, 64)),
    ],
)
def test_what_pad_adds_is_no_part_of_the_image(options, expected):
    sample = BaseDataElement(metainfo=dict(ori_shape=(100, 80), **options))
    assert _resized(sample) == expected
