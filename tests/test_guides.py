"""Every command and every piece of Python in the guides, run as it stands there."""

import re
import shlex
import shutil

import pytest
import torch
from helpers import ROOT, run_tool, shell_commands
from tiny_models import save_tiny_model, save_video

GUIDES = ROOT / 'docs' / 'guides'
THINGS = ('cat', 'dog', 'cow', 'sheep', 'horse', 'bird', 'car', 'bus', 'boat', 'bicycle')
STUFF = ('road', 'sky', 'grass', 'water', 'sand', 'wall', 'person')


def blocks(guide, language):
    return re.findall(rf'```{language}\n(.*?)```', (GUIDES / guide).read_text(), flags=re.S)


def commands(guide):
    return [shlex.split(line) for line in shell_commands((GUIDES / guide).read_text())]


@pytest.fixture(scope='module')
def own_files(digits_root, tmp_path_factory):
    """The files that the guides name: models, photos, a video."""
    folder = tmp_path_factory.mktemp('own')
    images = sorted((digits_root / 'images' / 'training').iterdir())
    for target in ('photos', 'more'):
        shutil.copytree(images[0].parent, folder / target)
    shutil.copy(images[0], folder / 'photo.jpg')
    save_video(folder / 'clip.mp4', frames=2)
    for name, base, classes, bias in (
        ('my_detector', 'retinanet', THINGS, 'bbox_head.retina_cls.bias'),
        ('my_segmentor', 'sem-fpn', STUFF, 'decode_head.conv_seg.bias'),
    ):
        config, checkpoint = save_tiny_model(folder, base, classes=classes)
        config.rename(folder / f'{name}.py')
        content = torch.load(checkpoint, weights_only=False)
        content['state_dict'][bias][:: len(classes)] += 9  # cats and roads everywhere
        torch.save(content, folder / f'{name}.pth')
    return folder


@pytest.fixture
def in_own_folder(own_files, tmp_path, monkeypatch):
    for path in own_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, 'compile', lambda forward, **options: forward)  # minutes
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return tmp_path


@pytest.mark.parametrize('command', commands('predict.md'), ids=' '.join)
def test_a_command_of_the_guide_to_predictions(command, in_own_folder):
    python, tool, *arguments = command
    assert (python, tool) == ('python', 'tools/predict.py')
    run_tool('predict', *arguments)
    out = in_own_folder / ('found' if '--out' in command else 'work_dirs/predictions')
    expected = 'predictions.json' if 'my_detector.py' in command else 'classes.json'
    assert (out / expected).is_file()
    assert (out / 'pictures').is_dir() != ('--no-pictures' in command)


@pytest.mark.parametrize('code', blocks('predict.md', 'python'), ids=['mmdet', 'mmseg'])
def test_the_python_of_the_guide_to_predictions(code, in_own_folder):
    assert len(code.split('\n\n')[1].splitlines()) <= 5
    scope = {}
    exec(code, scope)
    assert len(scope['results']['predictions']) == len(list((in_own_folder / 'photos').iterdir()))
    assert (in_own_folder / 'found').is_dir()


@pytest.mark.parametrize('command', commands('explain.md'), ids=' '.join)
def test_a_command_of_the_guide_to_explanations(command, in_own_folder):
    if command[0] == 'pip':
        from mmpoolformer.engine.explaining import INSTALL_HINT

        assert ' '.join(command) == INSTALL_HINT  # what the tool says where it is missing
        return
    pytest.importorskip('pytorch_grad_cam')
    python, tool, *arguments = command
    assert (python, tool) == ('python', 'tools/explain.py')
    run_tool('explain', *arguments)
    out = in_own_folder / ('why' if '--out' in command else 'work_dirs/explanations')
    assert list(out.glob('*_cam.png')) and list(out.glob('*_features.png'))
