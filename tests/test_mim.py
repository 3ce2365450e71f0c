"""mim's commands, with the install that each mim supports.

onedl-mim reads an editable install. openmim looks inside the installed package, so it needs
the wheel.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from helpers import CONFIGS, ROOT, train_options
from mmengine.config import Config

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'


def installed(name):
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


CLASSIC = installed('openmim')


# mim's download but for the transfer: the file holds the URL that was asked for.
DOWNLOAD = """
import importlib, pathlib, sys
module = importlib.import_module('mim.commands.download')
module.download_from_file = lambda url, path, **_: pathlib.Path(path).write_text(url)
module.cli(sys.argv[1:])
"""


@pytest.fixture(scope='session')
def env(tmp_path_factory, wheel):
    env = dict(os.environ)
    if CLASSIC:
        site = tmp_path_factory.mktemp('site')
        pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site]
        subprocess.run([*pip, wheel], check=True)
        env['PYTHONPATH'] = str(site)
    return env


def run(command, env, cwd):
    run = subprocess.run(map(str, command), cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


@pytest.fixture(scope='session')
def mim(env):
    script = Path(sys.executable).with_name('mim')
    return lambda *args, cwd: run([script, *args], env, cwd)


def test_train_and_test_by_path_and_bare_name(mim, coco_root, tmp_path):
    options = train_options(RETINANET, coco_root)
    mim('train', 'mmpoolformer', RETINANET, '--work-dir', tmp_path, *options, cwd=tmp_path)
    (checkpoint,) = tmp_path.glob('*.pth')
    args = ['--checkpoint', checkpoint, '--work-dir', tmp_path, *options]
    mim('test', 'mmpoolformer', RETINANET.name, *args, cwd=tmp_path)
    metrics = [json.loads((tmp_path / f'{s}_metrics.json').read_text()) for s in ('val', 'test')]
    assert metrics[0]['coco/bbox_mAP'] == metrics[1]['coco/bbox_mAP']


@pytest.mark.parametrize(
    'toolbox, config',
    [
        ('mmdet' if CLASSIC else 'mmdetection', RETINANET),
        ('mmsegmentation' if CLASSIC else 'mmseg', SEM_FPN),
    ],
    ids=lambda value: getattr(value, 'stem', value),
)
def test_the_toolboxes_own_launchers_run_our_configs(
    toolbox, config, mim, coco_root, ade_root, tmp_path
):
    options = train_options(config, ade_root if config == SEM_FPN else coco_root)
    mim('train', toolbox, config, '--work-dir', tmp_path, *options, cwd=tmp_path)
    assert list(tmp_path.glob('*.pth'))


@pytest.fixture
def download_env(env, tmp_path):
    """Where mim finds this repository as an install, whichever one the environment holds."""
    if not CLASSIC:
        folder = tmp_path / 'site' / 'mmpoolformer-0.dist-info'
        folder.mkdir(parents=True)
        (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmpoolformer\nVersion: 0\n')
        url = dict(url=ROOT.as_uri(), dir_info=dict(editable=True))
        (folder / 'direct_url.json').write_text(json.dumps(url))
        env = dict(env, PYTHONPATH=f'{folder.parent}:{ROOT}')
    return env


def test_download_of_the_trained_models(download_env, tmp_path):
    trained = [model for model in INDEX['Models'] if 'Weights' in model]
    names = [model['Name'] for model in trained]
    assert len(names) == 5
    args = ['mmpoolformer', '--config', *names, '--dest', tmp_path]
    run([sys.executable, '-c', DOWNLOAD, *args], download_env, tmp_path)
    for model in trained:
        weights = tmp_path / model['Weights'].split('/')[-1]
        assert weights.read_text() == model['Weights']
        assert Config.fromfile(tmp_path / f'{model["Name"]}.py').model.backbone.type == 'PoolFormer'


def test_bare_names_are_found_once_in_the_repository():
    names = {path.name for path in CONFIGS.glob('*/*.py')}
    found = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if not name.startswith('.')]
        found += [Path(folder, name) for name in files if name in names]
    assert sorted(found) == sorted(CONFIGS.glob('*/*.py'))
