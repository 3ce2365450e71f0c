"""``docs/guides/toolbox-tools.md``: every command that it says works on this stack."""

import importlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import mmseg
import numpy as np
import pytest
import torch
from helpers import ROOT, run_forked, run_tool, shell_commands
from tiny_models import save_tiny_model

GUIDE = (ROOT / 'docs' / 'guides' / 'toolbox-tools.md').read_text()
COLUMNS = ('command', 'shows', 'writes', 'maintained', 'classic', 'here')
SHORT = """
_base_ = {base!r}
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
custom_imports = dict(imports=['mmpoolformer'])
"""


def installed(name):
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


STACK = 'classic' if installed('openmim') else 'maintained'


def table_rows():
    for line in GUIDE.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split(' |')]
        if 'mim run' in cells[0] and len(cells) == len(COLUMNS):
            yield {name: cell.strip('`') for name, cell in zip(COLUMNS, cells)}


ROWS = list(table_rows())
WORKING = [row for row in ROWS if row[STACK].startswith('works')]


def words_of(command):
    """What mim is given, and the variables before it."""
    words = shlex.split(command)
    start = words.index('mim')
    variables = dict(word.split('=') for word in words[:start])
    words = words[start + 1 :]
    if STACK == 'classic':
        words = ['mmdet' if word == 'mmdetection' else word for word in words]
    return words, variables


def run_script(command, env):
    """In the place of mim's child process: here the toolboxes are imported already."""
    sys.argv = command[1:]
    sys.path[:0] = [str(Path(command[1]).parent), *filter(None, env['TOOLBOX_PATH'].split(':'))]
    runpy.run_path(command[1], run_name='__main__')
    return 0


def run_mim(words):
    subprocess.check_call = run_script
    importlib.import_module('mim.cli').cli.main(words, standalone_mode=False)


def call(command, folder):
    """A command in a fork of this process, so that none finds what another left in memory."""
    log = folder / 'log.txt'
    words, variables = words_of(command)
    path = os.path.abspath(variables['PYTHONPATH']) if variables else ''
    env = dict(MPLBACKEND='Agg', TOOLBOX_PATH=path)
    process = multiprocessing.get_context('fork').Process(
        target=run_forked, args=(log, env, run_mim, words)
    )
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()


def train(folder, name, base):
    """A tiny model after two iterations: ``NAME.py``, ``NAME.pth`` and what was logged."""
    save_tiny_model(folder, base)
    (folder / 'tiny.py').rename(folder / f'tiny_{name}.py')
    (folder / f'{name}.py').write_text(SHORT.format(base=f'tiny_{name}.py'))
    run_tool('train', f'{name}.py', '--work-dir', folder / 'work_dirs' / name)
    shutil.copy(*(folder / 'work_dirs' / name).glob('*.pth'), folder / f'{name}.pth')


def write_annotations(folder):
    """What the tools for annotations read: COCO's files and a Pascal VOC of one image."""
    coco = json.loads((folder / 'data/digits/annotations/instances_validation.json').read_text())
    coco.update(info={}, licenses=[])
    coco['categories'] = [dict(c, supercategory='digit') for c in coco['categories'][:2]]
    kept = {category['id'] for category in coco['categories']}
    coco['annotations'] = [a for a in coco['annotations'] if a['category_id'] in kept]
    (folder / 'coco' / 'annotations').mkdir(parents=True)
    for path in ('annotations.json', 'coco/annotations/instances_train2017.json'):
        (folder / path).write_text(json.dumps(coco))
    (folder / 'classes.txt').write_text('cat\ndog\n')
    voc = folder / 'VOCdevkit' / 'VOC2007'
    for name in ('ImageSets/Main', 'Annotations'):
        (voc / name).mkdir(parents=True)
    for split in ('train', 'val', 'trainval', 'test'):
        (voc / 'ImageSets' / 'Main' / f'{split}.txt').write_text('1\n')
    box = '<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>30</ymax>'
    cat = f'<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>'
    size = '<size><width>64</width><height>64</height></size>'
    (voc / 'Annotations' / '1.xml').write_text(f'<annotation>{size}{cat}</annotation>')


@pytest.fixture(scope='module')
def files(digits_root, tmp_path_factory):
    """The files that the guide names, made once."""
    folder = tmp_path_factory.mktemp('toolbox')
    shutil.copytree(digits_root, folder / 'data' / 'digits')
    shutil.copytree(digits_root / 'images' / 'validation', folder / 'photos')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(folder, 'my_detector', 'retinanet')
        train(folder, 'my_segmentor', 'sem-fpn')
        for command in shell_commands(GUIDE):
            python, script, *words = shlex.split(command)
            assert (python, script) == ('python', 'tools/test.py')
            run_tool('test', *words)
    shutil.copy(next(folder.glob('work_dirs/my_detector/*/vis_data/scalars.json')), folder)
    for name, code in re.findall(r'`(my_\w+\.py)`:\n\n```python\n(.*?)```', GUIDE, flags=re.S):
        (folder / name).write_text(code)
    write_annotations(folder)
    return folder


@pytest.fixture
def in_own_folder(files, tmp_path, monkeypatch):
    shutil.copytree(files, tmp_path, copy_function=os.symlink, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tables_are_read():
    tables = re.findall(r'^\| `.*mim run .*\|$', GUIDE, flags=re.M)
    assert len(ROWS) == len([line for line in tables if line.count(' | ') > 3])
    assert WORKING and len(WORKING) < len(ROWS)


@pytest.mark.parametrize('row', WORKING, ids=lambda row: row['command'].split('mim run ')[1])
def test_a_tool_that_works(row, in_own_folder):
    log = call(row['command'], in_own_folder)
    assert 'The script finished successfully.' in log
    written = list(in_own_folder.glob(row['writes'])) if row['writes'] else [Path('log.txt')]
    assert written and all(path.stat().st_size for path in written)


class Reduced(list):
    """Label maps as a data set with ``reduce_zero_label`` gives them."""

    ignore_index, reduce_zero_label = 255, True

    def __init__(self, samples):
        super().__init__(samples)
        self.METAINFO = dict(classes=('sky', 'roof', 'wall'))


def test_what_the_guide_says_of_reduced_labels():
    tool = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'confusion_matrix.py'
    labels = torch.tensor([[0, 1, 1, 2]])
    sample = SimpleNamespace(gt_sem_seg=SimpleNamespace(data=labels))
    saved = labels.numpy().astype(np.uint8) + 1  # as mmseg writes what it predicts
    calculate = runpy.run_path(str(tool))['calculate_confusion_matrix']
    matrix = calculate(Reduced([dict(data_samples=sample)]), [saved])
    (row,) = [row for row in ROWS if 'my_registered.py' in row['command']]
    assert row[STACK].startswith('works') == (matrix == np.diag([1, 2, 1])).all()
