"""What the wheel carries, and that it works away from the repository."""

import os
import subprocess
import sys
import zipfile

from helpers import CONFIGS, ROOT


def repository_files(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_wheel_carries_configs_tools_and_index_for_mim(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = repository_files('configs') | repository_files('tools') | {'model-index.yml'}
    carried = {name for name in names if name.startswith('mmpoolformer/.mim/')}
    assert carried == {f'mmpoolformer/.mim/{name}' for name in expected}
    assert repository_files('mmpoolformer') <= names
    folders = ('tests', 'configs', 'tools', 'benchmarks', 'dev')
    assert not any(name.startswith(folders) for name in names)


def test_source_tree_holds_no_mim_folder():
    assert not (ROOT / 'mmpoolformer' / '.mim').exists()


def test_launcher_of_the_wheel_reads_its_own_configs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    mim = tmp_path / 'mmpoolformer' / '.mim'
    config = next((mim / 'configs' / 'detection').glob('retinanet*_coco.py'))
    assert config.name in {path.name for path in CONFIGS.glob('*/*.py')}
    run = subprocess.run(
        [sys.executable, mim / 'tools' / 'train.py', config],
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert 'error: data not found' in run.stderr and 'Traceback' not in run.stderr
