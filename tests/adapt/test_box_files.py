"""Folders of Pascal VOC and YOLO files as own data."""

import json
import os
import re
import sys
from xml.sax.saxutils import escape

import numpy as np
import pytest
from helpers import CONFIGS, run_tool, save_noise, tool_error
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import ExifTags, Image

pytest.importorskip('globox')

from mmpoolformer import OwnDataError, own_data_changes, use_dataset

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_1x_coco.py'
# Image: width, height, and (class, left, top, right, bottom) of its objects.
BOXES = {
    '0.jpg': (64, 48, [('screw', 0, 8, 32, 40), ('nut', 16, 12, 48, 36)]),
    '1.png': (80, 64, [('washer', 20, 16, 60, 48)]),
    'left/0.JPG': (40, 80, [('nut', 10, 20, 30, 60)]),
    'left/a.b.jpeg': (64, 64, []),
    'right/0.bmp': (96, 64, [('screw', 24, 16, 72, 64)]),
}
CLASSES = ['screw', 'nut', 'washer']


def voc(name, width, height, boxes, difficult=0, size=True):
    parts = [f'<annotation><filename>{name}</filename>']
    parts += [f'<size><width>{width}</width><height>{height}</height></size>'] * size
    for label, *corners in boxes:
        sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True)
        box = ''.join(f'<{side}>{value}</{side}>' for side, value in sides)
        flag = f'<difficult>{difficult}</difficult>'
        parts.append(f'<object><name>{escape(label)}</name>{flag}<bndbox>{box}</bndbox></object>')
    return ''.join([*parts, '</annotation>'])


def yolo(width, height, boxes, more=''):
    lines = []
    for label, left, top, right, bottom in boxes:
        middle = (left + right) / 2 / width, (top + bottom) / 2 / height
        sides = (right - left) / width, (bottom - top) / height
        lines.append(f'{CLASSES.index(label)} {" ".join(map(str, (*middle, *sides)))}{more}\n')
    return ''.join(lines)


@pytest.fixture
def folder(tmp_path):
    """Images in sub-folders and of several suffixes, with labels in both formats."""
    rng = np.random.default_rng(0)
    for name, (width, height, boxes) in BOXES.items():
        image = tmp_path / 'images' / name
        for path in (image, tmp_path / 'voc' / name, tmp_path / 'yolo' / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_noise(image, width, height, rng)
        text = voc(image.name, width, height, boxes)
        (tmp_path / 'voc' / name).with_suffix('.xml').write_text(text)
        (tmp_path / 'yolo' / name).with_suffix('.txt').write_text(yolo(width, height, boxes))
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES))
    return tmp_path


def retinanet():
    init_default_scope('mmdet')
    return Config.fromfile(RETINANET, import_custom_modules=False)


def convert(folder, kind, **options):
    if kind == 'yolo':
        options.setdefault('classes', folder / 'classes.txt')
    cfg = use_dataset(retinanet(), folder / 'images', folder / kind, **options)
    return cfg, json.loads((folder / f'{kind}_coco.json').read_text())


def boxes_of(content):
    """The boxes of a COCO file as the table above has them."""
    names = {category['id']: category['name'] for category in content['categories']}
    found = {}
    for image in content['images']:
        boxes = []
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, w, h = annotation['bbox']
                corners = (round(value, 6) for value in (x, y, x + w, y + h))
                boxes.append((names[annotation['category_id']], *corners))
        found[image['file_name']] = (image['width'], image['height'], boxes)
    return found


@pytest.mark.parametrize('kind', ['voc', 'yolo'])
def test_images_boxes_and_classes_are_those_of_the_files(kind, folder):
    cfg, content = convert(folder, kind)
    assert boxes_of(content) == BOXES
    order = CLASSES if kind == 'yolo' else sorted(CLASSES)
    assert content['categories'] == [
        dict(id=number, name=name, supercategory='none') for number, name in enumerate(order, 1)
    ]
    names = {image['id']: image['file_name'] for image in content['images']}
    assert [names[number] for number in sorted(names)] == sorted(BOXES)
    assert cfg.model.bbox_head.num_classes == 3
    parts = [json.loads((folder / f'{kind}_coco_{p}.json').read_text()) for p in ('train', 'val')]
    assert [len(part['images']) for part in parts] == [4, 1]
    first = (folder / f'{kind}_coco.json').read_bytes()
    convert(folder, kind)
    assert (folder / f'{kind}_coco.json').read_bytes() == first


@pytest.mark.parametrize('kind', ['voc', 'yolo'])
def test_mmdet_reads_and_the_check_passes_what_is_written(kind, folder, capsys):
    config = folder / 'own.py'
    data = ['--images', folder / 'images', '--annotations', folder / kind, '-o', config]
    run_tool('use_dataset', RETINANET, *data, '--classes', folder / 'classes.txt', '--seed', 1)
    assert f'your own data, {kind}: 5 images, 5 boxes' in capsys.readouterr().out
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    cfg.train_dataloader.dataset.update(
        ann_file=str(folder / f'{kind}_coco.json'), filter_cfg=None, pipeline=[]
    )
    data = DATASETS.build(cfg.train_dataloader.dataset)
    assert data.metainfo['classes'] == tuple(CLASSES)
    labels = {
        info['img_path'].removeprefix(f'{folder}/images/'): [
            CLASSES[instance['bbox_label']] for instance in info['instances']
        ]
        for info in map(data.get_data_info, range(len(data)))
    }
    assert labels == {name: [box[0] for box in boxes] for name, (*_, boxes) in BOXES.items()}
    run_tool('check_dataset', config, '--workers', 0)
    assert '0 errors' in capsys.readouterr().out


def test_perfect_predictions_have_an_ap_of_one(folder):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _, content = convert(folder, 'voc')
    truth = COCO(str(folder / 'voc_coco.json'))
    predictions = [dict(annotation, score=0.9) for annotation in content['annotations']]
    evaluation = COCOeval(truth, truth.loadRes(predictions), 'bbox')
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    assert evaluation.stats[0] == pytest.approx(1)


def test_difficult_objects_are_ignored_as_mmdet_ignores_those_of_voc(folder):
    width, height, boxes = BOXES['0.jpg']
    (folder / 'voc' / '0.xml').write_text(voc('0.jpg', width, height, boxes, difficult=1))
    cfg, content = convert(folder, 'voc')
    assert [a['iscrowd'] for a in content['annotations']] == [1, 1, 0, 0, 0]
    dataset = dict(cfg.train_dataloader.dataset, ann_file=str(folder / 'voc_coco.json'))
    data = DATASETS.build(dict(dataset, pipeline=[], filter_cfg=None))
    first = next(i for i in map(data.get_data_info, range(5)) if i['img_path'].endswith('s/0.jpg'))
    assert [instance['ignore_flag'] for instance in first['instances']] == [1, 1]


YOLO_LINES = {
    'a confidence': lambda text: text.replace('\n', ' 0.75\n'),
    'a class as a float': lambda text: re.sub(r'^(\d) ', r'\1.0 ', text, flags=re.M),
    'blank lines and spaces': lambda text: f'\n {text}\n  \n',
    'a byte order mark and CRLF': lambda text: '\ufeff' + text.replace('\n', '\r\n'),
    'a polygon': lambda _: '0 0 0.5 0.25 0.1666667 0.5 0.8333333\n1 0.5 0.5 0.5 0.5\n',
}


@pytest.mark.parametrize('case', YOLO_LINES)
def test_variants_of_yolo(case, folder):
    label = folder / 'yolo' / '0.txt'
    label.write_bytes(YOLO_LINES[case](label.read_text()).encode())
    found = boxes_of(convert(folder, 'yolo')[1])['0.jpg'][2]
    for (name, *corners), (expected, *sides) in zip(found, BOXES['0.jpg'][2], strict=True):
        assert name == expected and corners == pytest.approx(sides, abs=1e-3)


def test_polygons_are_counted(folder):
    (folder / 'yolo' / '0.txt').write_text(YOLO_LINES['a polygon'](''))
    changes = own_data_changes(
        retinanet(), folder / 'images', folder / 'yolo', classes=folder / 'classes.txt'
    )
    assert ' boxes, 1 of them around polygons' in '\n'.join(map(str, changes))


LAUGHS = '\n'.join(
    ['a0: &a0 [lol]']
    + [f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]' for k in range(1, 9)]
    + ['names: [screw, nut, *a8]']
)


@pytest.mark.parametrize(
    'text, word',
    [
        (LAUGHS, 'class 2 is list'),
        ('names: [screw, "", washer]', 'class 1 is empty'),
        ('names: {0: screw, 1: null, 2: washer}', 'class 1 is empty'),
        ('names: {0: screw, true: nut, 2: washer}', 'names, a list or numbered'),
        ('names: [screw, !!bool nut, washer]', 'does not fit its tag'),
        ('names: [screw, !!timestamp nut, washer]', 'does not fit its tag'),
        ('names: !!seq screw', 'names'),
        ('names: [screw, yes, washer]', 'True of type bool'),
        ('names: [screw, 1.5, washer]', '1.5 of type float'),
        ('names: [screw, 010, washer]', "'010' is another number"),
        ('names: [screw, 12:30, washer]', "'12:30' is another number"),
        ('names: {[screw]: 0}', 'a key that is a list'),
        ('names: {0: screw, 0: nut, 1: washer}', 'the key 0 stands twice'),
        ('names: {0: screw, 1: nut, 1.0: washer}', 'the key 1.0 stands twice'),
        ('nc: 4\nnames: [screw, nut, washer]', '3 names, and nc is 4'),
        ('names: [screw, "a\\e]0;b", washer]', r'\x1b]0;b'),
        (f'names: [screw, {"x" * 300}, washer]', 'up to 200'),
        (f'names: {"[" * 3000}', 'recursion'),
        (f'names: [screw, 0x{"f" * 5000}, washer]', 'is another number'),
        ('names: [screw, nut, washer]\nkpt_shape: [17, 3]', 'key points are not read'),
        ('names: [screw, "{{$X:a}}", washer]', 'mmengine replaces'),
    ],
    ids=lambda value: value[:30] if 'names' in value else '',
)
def test_names_of_a_data_yaml_that_are_none(text, word, folder):
    (folder / 'data.yaml').write_text(text)
    with pytest.raises(OwnDataError) as error:
        convert(folder, 'yolo', classes=folder / 'data.yaml')
    message = str(error.value)
    assert word in message and len(message) < 1000 and '\x1b' not in message


def test_names_are_parted_by_lines_alone(folder):
    (folder / 'own.txt').write_text('sc\u2028rew\nnut\nwasher\n')
    with pytest.raises(OwnDataError, match='class 0'):
        convert(folder, 'yolo', classes=folder / 'own.txt')


def test_a_file_of_ones_own_is_not_replaced(folder):
    (folder / 'yolo_coco.json').write_text('{"images": []}')
    with pytest.raises(OwnDataError, match=r'yolo_coco\.json .* is another file'):
        convert(folder, 'yolo', classes=CLASSES)
    (folder / 'yolo_coco.json').unlink()
    convert(folder, 'yolo', classes=CLASSES)
    convert(folder, 'yolo', classes=CLASSES)


def test_a_pipe_among_the_labels_is_refused(folder):
    os.mkfifo(folder / 'yolo' / '9.txt')
    with pytest.raises(OwnDataError, match='no regular file'):
        convert(folder, 'yolo', classes=CLASSES)


@pytest.mark.parametrize('names', ['[screw, nut, washer]', '{0: screw, 1: nut, 2: washer}'])
def test_classes_of_a_data_yaml(names, folder):
    (folder / 'data.yaml').write_text(f'train: images\nnc: 3\nnames: {names}\n')
    (folder / 'yolo' / 'classes.txt').write_text('screw\n')  # as annotation tools write it
    _, content = convert(folder, 'yolo', classes=folder / 'data.yaml')
    assert [category['name'] for category in content['categories']] == CLASSES


def test_sizes_are_those_of_images_turned_as_their_exif_entry_says(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (64, 48)).save(folder / 'images' / '0.jpg', exif=exif)
    turned = boxes_of(convert(folder, 'yolo')[1])['0.jpg']
    name, *corners = turned[2][0]
    assert turned[:2] == (48, 64) and name == 'screw'
    assert corners == pytest.approx([0, 64 * 8 / 48, 24, 64 * 40 / 48], abs=1e-5)
    with pytest.raises(OwnDataError, match=r'0\.xml is for an image of 64×48.*48×64.*EXIF'):
        convert(folder, 'voc')


def test_images_without_a_label_file_are_left_out_and_named(folder):
    (folder / 'yolo' / '1.txt').unlink()
    changes = own_data_changes(
        retinanet(), folder / 'images', folder / 'yolo', classes=folder / 'classes.txt'
    )
    content = json.loads((folder / 'yolo_coco.json').read_text())
    assert {image['file_name'] for image in content['images']} == {*BOXES} - {'1.png'}
    assert '; left out, without a .txt file: 1, such as 1.png)' in '\n'.join(map(str, changes))


def test_validation_labels_have_the_classes_of_the_training(folder):
    (folder / 'voc').rename(folder / 'train')
    (folder / 'val' / 'left').mkdir(parents=True)
    (folder / 'train' / 'left' / '0.xml').rename(folder / 'val' / 'left' / '0.xml')
    cfg, content = convert(folder, 'train', val_annotations=folder / 'val')
    val = json.loads((folder / 'val_coco.json').read_text())
    assert content['categories'] == val['categories'] and len(val['images']) == 1
    assert cfg.val_evaluator.ann_file == str(folder / 'val_coco.json')
    path = folder / 'val' / 'left' / '0.xml'
    path.write_text(path.read_text().replace('nut', 'bolt'))
    with pytest.raises(OwnDataError, match=r"0\.xml has an object of the class 'bolt'"):
        convert(folder, 'train', val_annotations=folder / 'val')


def write(name, change):
    def apply(folder):
        path = folder / name
        path.write_text(change(path.read_text()))

    return apply


def add(name, text='', size=None):
    def apply(folder):
        if size:
            Image.new('RGB', size).save(folder / name)
        else:
            (folder / name).write_text(text)

    return apply


def remove_all(folder):
    for path in [*folder.rglob('*.xml'), *folder.rglob('*.txt')]:
        path.unlink()


XML, TXT = 'voc/left/0.xml', 'yolo/left/0.txt'
BAD = {
    'broken XML': ('voc', write(XML, lambda t: t[:-5]), [XML, 'Pascal VOC', '<size>']),
    'no XML': ('voc', write(XML, lambda _: ''), [XML, 'Pascal VOC']),
    'bytes': ('voc', lambda f: (f / XML).write_bytes(b'\xff\xfe\x00'), [XML, 'Pascal VOC']),
    'no size': ('voc', add(XML, voc('0.JPG', 0, 0, [], size=False)), [XML, '<size>']),
    'a size of 0': ('voc', add(XML, voc('0.JPG', 0, 0, [])), [XML, '<size>']),
    'another size': (
        'voc',
        write(XML, lambda t: t.replace('>40<', '>80<')),
        [XML, '80×80', '40×80'],
    ),
    'no name': ('voc', write(XML, lambda t: t.replace('<name>nut</name>', '')), [XML, '<name>']),
    'an empty name': ('voc', write(XML, lambda t: t.replace('nut', ' ')), [XML, "class ''"]),
    'no number': ('voc', write(XML, lambda t: t.replace('>10<', '>x<')), [XML, '<bndbox>']),
    'a corner without end': (
        'voc',
        write(XML, lambda t: t.replace('>10<', '>-1e999<')),
        [XML, 'a box of -inf'],
    ),
    'corners the wrong way round': (
        'voc',
        write(XML, lambda t: t.replace('>10<', '>39<')),
        [XML, 'xmin ≤ xmax'],
    ),
    'no object anywhere': (
        'voc',
        lambda f: [
            path.write_text(re.sub('<object>.*</object>', '', path.read_text()))
            for path in f.rglob('*.xml')
        ],
        ['none of the 5 files', 'object'],
    ),
    'a class beyond the names': (
        'yolo',
        write(TXT, lambda t: f'{t}3 0.5 0.5 0.1 0.1\n'),
        [f'{TXT}, line 2', 'class 3', '0 to 2', '--classes'],
    ),
    'a negative class': ('yolo', add(TXT, '-1 0.5 0.5 0.1 0.1'), [TXT, 'class -1']),
    'a name for a number': ('yolo', add(TXT, 'nut 0.5 0.5 0.1 0.1'), [TXT, 'line 1', "'nut 0.5"]),
    'half a class': ('yolo', add(TXT, '0.5 0.5 0.5 0.1 0.1'), [TXT, 'whole number']),
    'pixels': ('yolo', add(TXT, '0 20 40 20 40'), [TXT, 'between 0 and 1']),
    'no finite number': ('yolo', add(TXT, '0 nan 0.5 0.1 0.1'), [TXT, 'line 1']),
    'too few numbers': ('yolo', add(TXT, '0 0.5 0.5 0.1'), [TXT, 'x, y, width and height']),
    'a keypoint too many': ('yolo', add(TXT, '0 0.5 0.5 0.1 0.1 0 0 2'), [TXT, 'polygon']),
    'no text': ('yolo', lambda f: (f / TXT).write_bytes(b'\xff\xfe\x00'), [TXT, 'as text']),
    'a label file without an image': ('yolo', add('yolo/9.txt'), ['yolo/9.txt', 'no image in']),
    'two images of one name': (
        'yolo',
        add('images/0.png', size=(64, 48)),
        ['yolo/0.txt', '0.jpg and 0.png'],
    ),
    'a broken image': ('yolo', add('images/1.png', 'text'), ['images/1.png', 'as an image']),
    'both formats': ('yolo', add('yolo/0.xml'), ['0.xml and 0.txt', 'one COCO file']),
    'neither format': ('yolo', remove_all, ['no .xml and no .txt file']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_labels_are_refused(case, folder):
    kind, change, words = BAD[case]
    change(folder)
    with pytest.raises(OwnDataError) as error:
        convert(folder, kind, classes=None if kind == 'voc' else CLASSES)
    message = str(error.value)
    assert all(word in message for word in words) and '\n' not in message, message
    assert not (folder / f'{kind}_coco.json').exists()


def test_yolo_needs_the_names_of_its_classes(folder, capsys):
    data = ['--images', folder / 'images', '--annotations', folder / 'yolo']
    message = tool_error(capsys, 'use_dataset', RETINANET, *data)
    assert message.startswith('error: ') and '--classes' in message and 'data.yaml' in message
    (folder / 'data.yaml').write_text('nc: 3\n')
    message = tool_error(capsys, 'use_dataset', RETINANET, *data, '--classes', folder / 'data.yaml')
    assert 'data.yaml' in message and 'no names' in message


def test_masks_are_refused(folder):
    cfg = Config.fromfile(MASK_RCNN, import_custom_modules=False)
    with pytest.raises(OwnDataError, match=r'trains masks.*retinanet'):
        use_dataset(cfg, folder / 'images', folder / 'voc')


def test_classes_beside_a_coco_file_are_refused(own_coco):
    with pytest.raises(OwnDataError, match='categories of its COCO file'):
        use_dataset(retinanet(), own_coco / 'images', own_coco / 'all.json', classes=CLASSES)


def test_the_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'globox', None)
    with pytest.raises(OwnDataError, match=r"globox.*pip install 'mmpoolformer\[convert\]'"):
        convert(folder, 'voc')
