"""``tools/check_dataset.py`` over whole data sets."""

import json
import os
import shutil

import pytest
from bad_files import label_map
from helpers import CONFIGS, run_tool
from mmengine.config import Config
from PIL import Image

from mmpoolformer.datasets import ERROR, WARNING
from mmpoolformer.datasets.check import _check_voc_names

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_1x_coco.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'


def coco_options(root):
    return [
        '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={root}/' for split in ('train', 'val', 'test')),
    ]


def test_tool_passes_a_good_data_set(coco_root, capsys):
    run_tool('check_dataset', MASK_RCNN, '--workers', 0, *coco_options(coco_root))
    out = capsys.readouterr().out
    assert 'no problems found' in out or '0 errors' in out


@pytest.mark.parametrize('workers', [0, 2])
def test_tool_finds_a_damaged_image(workers, coco_root, tmp_path, capsys):
    root = tmp_path / 'coco'
    shutil.copytree(coco_root, root)
    victim = next((root / 'train2017').iterdir())
    victim.write_bytes(victim.read_bytes()[:200])
    options = ['--workers', workers, '--out', tmp_path / 'all.txt', *coco_options(root)]
    with pytest.raises(SystemExit) as stop:
        run_tool('check_dataset', RETINANET, *options)
    assert stop.value.code == 1
    assert 'damaged image' in capsys.readouterr().out
    assert victim.name in (tmp_path / 'all.txt').read_text()


def test_names_are_printed_as_they_are(coco_root, tmp_path, capsys):
    """Rich takes square brackets for markup, and a terminal takes control characters for orders."""
    root = shutil.copytree(coco_root, tmp_path / 'coco')
    file = root / 'annotations' / 'instances_train2017.json'
    coco = json.loads(file.read_text())
    for image, name in zip(coco['images'], ['[/x].jpg', '[red]a.jpg', '\x1b]0;owned.jpg']):
        image['file_name'] = name
    file.write_text(json.dumps(coco))
    with pytest.raises(SystemExit):
        run_tool('check_dataset', RETINANET, '--workers', 0, *coco_options(root))
    out = ''.join(capsys.readouterr().out.split()).replace('│', '')
    assert '[/x].jpg' in out and '[red]a.jpg' in out and '\x1b]' not in out


def test_tool_checks_label_maps(ade_root, tmp_path, capsys):
    root = tmp_path / 'ade'
    shutil.copytree(ade_root, root)
    victim = next((root / 'annotations' / 'training').iterdir())
    Image.fromarray(label_map(200)).save(victim)
    options = [
        f'train_dataloader.dataset.dataset.data_root={root}',
        *(f'{split}_dataloader.dataset.data_root={root}' for split in ('val', 'test')),
    ]
    with pytest.raises(SystemExit) as stop:
        run_tool('check_dataset', SEM_FPN, '--workers', 0, '--cfg-options', *options)
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert 'labels beyond the classes' in out and 'label map of another size' in out


def test_file_names_that_are_no_text_are_reported(ade_root, tmp_path, capsys):
    root = tmp_path / 'ade'
    shutil.copytree(ade_root, root)
    path = next((root / 'images' / 'training').iterdir())
    path.rename(os.fsdecode(os.fsencode(path.parent) + b'/\x80.jpg'))
    options = [
        f'train_dataloader.dataset.dataset.data_root={root}',
        *(f'{split}_dataloader.dataset.data_root={root}' for split in ('val', 'test')),
    ]
    args = ['--workers', 0, '--out', tmp_path / 'all.txt', '--cfg-options', *options]
    with pytest.raises(SystemExit) as stop:
        run_tool('check_dataset', SEM_FPN, *args)
    assert stop.value.code == 1
    assert '\\udc80' in capsys.readouterr().out and '\\udc80' in (tmp_path / 'all.txt').read_text()


def test_config_without_data_sets_is_refused(tmp_path, capsys):
    Config(dict(default_scope='mmdet')).dump(tmp_path / 'own.py')
    with pytest.raises(SystemExit) as stop:
        run_tool('check_dataset', tmp_path / 'own.py')
    assert 'no data set' in stop.value.code


@pytest.mark.parametrize(
    'names, level',
    [(['cat', 'dog'], None), (['cat', 'bird'], ERROR), (['cat', 'dog', 'x'], WARNING)],
)
def test_names_in_files_of_pascal_voc_that_are_no_classes(names, level, tmp_path):
    objects = ''.join(f'<object><name>{name}</name></object>' for name in names)
    (tmp_path / 'a.xml').write_text(f'<annotation>{objects}</annotation>')
    infos = [dict(xml_path=tmp_path / 'a.xml'), dict(xml_path=tmp_path / 'none.xml')]
    found = [problem.level for problem in _check_voc_names(infos, ('cat', 'dog'), 'train')]
    assert found == ([level] if level else [])
