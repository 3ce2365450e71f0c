"""Tiny models that several tools are run with: config and checkpoint, and files made of them."""

import shlex
import shutil

import pytest
from helpers import ROOT, run_tool, shell_commands
from mmengine.config import Config
from tiny_models import save_tiny_model


@pytest.fixture(scope='session')
def detector(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp('detector'), 'retinanet')


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp('segmentor'), 'sem-fpn')


@pytest.fixture(scope='session')
def own_models(tmp_path_factory):
    """The folder of a user of docs/guides/deploy.md: models, photos, the data of the configs."""
    folder = tmp_path_factory.mktemp('deploy')
    digits = folder / 'data' / 'digits'
    run_tool('make_digits_dataset', digits, '--train', 16, '--val', 2, '--size', 64)
    shutil.copytree(digits / 'images' / 'validation', folder / 'photos')
    for name, base in (('my_detector', 'retinanet'), ('my_segmentor', 'sem-fpn')):
        config, checkpoint = save_tiny_model(folder, base)
        cfg = Config.fromfile(config)
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg.dump(folder / f'{name}.py')
        checkpoint.rename(folder / f'{name}.pth')
    return folder


@pytest.fixture(scope='session')
def deployed(own_models):
    """The folder after all exports of the guide, with 16 images where it says 64."""
    from mmpoolformer.engine.export import MOST_LOST

    guide = (ROOT / 'docs' / 'guides' / 'deploy.md').read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own_models)
        patch.setitem(MOST_LOST, 'mIoU', 1.0)  # random weights may lose any
        for command in shell_commands(guide):
            if ' tools/export.py ' in command:
                words = shlex.split(command)[2:]
                run_tool('export', *(word if word != '64' else '16' for word in words))
    return own_models


@pytest.fixture
def here(deployed, monkeypatch):
    """The same folder, stood in."""
    monkeypatch.chdir(deployed)
    return deployed
