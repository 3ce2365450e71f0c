"""Bad images and annotations: each is found, and what passes the check loads in mmdet and mmseg."""

import copy
import io
import json
import shutil
import string

import numpy as np
import pytest
from conftest import CONFIGS, run_tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image

from mmpoolformer.dataset_check import ERROR, WARNING, check_coco, check_image, check_pair

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_1x_coco.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'
CLASSES = ('cat', 'dog')


def encode(image, form='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(mode='RGB', size=(40, 30)):
    rng = np.random.default_rng(0)
    if mode == 'I;16':
        return Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze() if channels == 1 else pixels, mode)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    return encode(noise(), 'JPEG', exif=exif)


JPEG, PNG = encode(noise(), 'JPEG'), encode(noise())


@pytest.mark.parametrize(
    'name, content, level, kind',
    [
        ('zero.jpg', b'', ERROR, 'empty image file'),
        ('truncated.jpg', JPEG[: len(JPEG) // 2], ERROR, 'damaged image'),
        ('truncated.png', PNG[: len(PNG) // 2], ERROR, 'damaged image'),
        ('text.jpg', b'<html>404</html>', ERROR, 'damaged image'),
        ('png.jpg', PNG, WARNING, 'wrong extension'),
        ('16bit.png', encode(noise('I;16')), WARNING, 'converted image'),
        ('rgba.png', encode(noise('RGBA')), WARNING, 'converted image'),
        ('cmyk.jpg', encode(noise('CMYK'), 'JPEG'), WARNING, 'converted image'),
        ('rotated.jpg', rotated(), WARNING, 'EXIF rotation'),
        ('one.png', encode(noise(size=(1, 1))), WARNING, 'very small image'),
        ('wide.png', encode(Image.new('L', (20000, 6000))), WARNING, 'very large image'),
    ],
)
def test_bad_image(name, content, level, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    (problem,) = check_image(tmp_path / name)
    assert (problem.level, problem.kind) == (level, kind)
    assert str(tmp_path / name) in problem.where and problem.detail


@pytest.mark.parametrize(
    'mode, name', [('RGB', 'rgb.png'), ('L', 'grey.png'), ('P', 'palette.png')]
)
def test_good_image(mode, name, tmp_path):
    image = noise().quantize(16) if mode == 'P' else noise(mode)
    (tmp_path / name).write_bytes(encode(image))
    assert check_image(tmp_path / name, (40, 30)) == []


@pytest.mark.parametrize('content, size', [(PNG, (30, 40)), (rotated(), (40, 30))])
def test_size_other_than_the_annotations_is_an_error(content, size, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    kinds = [p.kind for p in check_image(tmp_path / 'image', size) if p.level == ERROR]
    assert kinds == ['image of another size']


def test_missing_image(tmp_path):
    (problem,) = check_image(tmp_path / 'gone.jpg')
    assert (problem.level, problem.kind) == (ERROR, 'image cannot be read')


# COCO ----------------------------------------------------------------------------------------


def good_coco():
    polygon = [[5, 5, 20, 5, 20, 15]]
    return {
        'images': [{'id': i, 'file_name': f'{i}.png', 'width': 40, 'height': 30} for i in (1, 2)],
        'categories': [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}],
        'annotations': [
            {
                'id': 10 * image,
                'image_id': image,
                'category_id': 3,
                'bbox': [5, 5, 15, 10],
                'area': 150,
                'iscrowd': 0,
                'segmentation': polygon,
            }
            for image in (1, 2)
        ],
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coco')
    for i in (1, 2):
        noise().save(folder / f'{i}.png')
    return folder


def check(folder, coco, with_masks=True):
    path = folder / 'annotations.json'
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
    return check_coco(path, folder, CLASSES, with_masks)


def changed(part, position=0, **fields):
    coco = good_coco()
    coco[part][position].update(fields)
    return coco


def without(part, key):
    coco = good_coco()
    del coco[part][0][key]
    return coco


MASK = {'size': [30, 40], 'counts': [100, 50, 1050]}


@pytest.mark.parametrize(
    'coco, level, kind',
    [
        ('{"images": [', ERROR, 'broken JSON'),
        ('[]', ERROR, 'no COCO annotations'),
        (without('images', 'height'), ERROR, 'broken image entry'),
        (changed('images', file_name='../1.png'), ERROR, 'broken image entry'),
        (changed('images', id=2), ERROR, 'image ids used twice'),
        (changed('annotations', id=20), ERROR, 'annotation ids used twice'),
        (changed('categories', id=7), ERROR, 'category ids used twice'),
        (changed('categories', name='bird'), ERROR, 'classes of the config'),
        (changed('annotations', image_id=5), WARNING, 'annotation of an unknown image, skipped'),
        (changed('annotations', category_id=4), WARNING, 'category not trained, skipped'),
        (changed('annotations', bbox=[5, 5, 0, 0]), WARNING, 'box without area, skipped'),
        (changed('annotations', bbox=[90, 5, 9, 9]), WARNING, 'box outside of the image, skipped'),
        (changed('annotations', bbox=[30, 5, 99, 9]), WARNING, 'box over the edge of the image'),
        (changed('annotations', bbox=[5, 5, 9]), ERROR, 'broken box'),
        (changed('annotations', bbox=[5, 5, 9, float('nan')]), ERROR, 'broken box'),
        (without('annotations', 'area'), ERROR, 'broken annotation'),
        (without('annotations', 'category_id'), ERROR, 'broken annotation'),
        (without('annotations', 'segmentation'), ERROR, 'no mask'),
        (changed('annotations', segmentation=[[1, 2, 3]]), WARNING, 'mask without area, ignored'),
        (changed('annotations', segmentation=[['a'] * 6]), ERROR, 'broken mask'),
        (
            changed('annotations', segmentation=dict(MASK, size=[40, 30])),
            ERROR,
            'mask of another size',
        ),
        (changed('annotations', segmentation=dict(MASK, counts=[7])), ERROR, 'broken mask'),
        (changed('annotations', segmentation=dict(MASK, counts='?!')), ERROR, 'broken mask'),
        (dict(good_coco(), annotations=[]), ERROR, 'no usable annotation'),
        (
            dict(good_coco(), annotations=good_coco()['annotations'][:1]),
            WARNING,
            'images without annotations',
        ),
    ],
)
def test_bad_annotations(coco, level, kind, folder):
    problems, _ = check(folder, coco)
    assert (level, kind) in [(problem.level, problem.kind) for problem in problems]
    assert all(str(folder / 'annotations.json') in p.where and p.detail for p in problems)


@pytest.mark.parametrize('mask', [MASK, {'size': [30, 40], 'counts': 'T3b1lP1'}, None])
def test_good_annotations(mask, folder):
    coco = changed('annotations', segmentation=mask) if mask else good_coco()
    if mask and isinstance(mask['counts'], str):
        masks = pytest.importorskip('pycocotools.mask')
        encoded = masks.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
        coco['annotations'][0]['segmentation']['counts'] = encoded['counts'].decode()
    problems, images = check(folder, coco)
    assert problems == []
    assert images == [(folder / f'{i}.png', (40, 30)) for i in (1, 2)]


# Label maps ----------------------------------------------------------------------------------


def pair(folder, labels, reduce_zero_label=True):
    noise().save(folder / 'image.png')
    Image.fromarray(labels).save(folder / 'labels.png')
    return dict(
        img_path=str(folder / 'image.png'),
        seg_map_path=str(folder / 'labels.png'),
        reduce_zero_label=reduce_zero_label,
        label_map=None,
    )


def label_map(*values, shape=(30, 40)):
    return np.resize(np.array(values, dtype=np.uint8), shape)


@pytest.mark.parametrize(
    'labels, reduce_zero_label, level, kind',
    [
        (label_map(0, 1, 4), True, ERROR, 'labels beyond the classes'),
        (label_map(0, 3), False, ERROR, 'labels beyond the classes'),
        (label_map(0, 1, shape=(20, 40)), True, ERROR, 'label map of another size'),
        (np.zeros((30, 40, 3), np.uint8), True, ERROR, 'label map in colour'),
        (label_map(0, 255), True, WARNING, 'label map without a class'),
    ],
)
def test_bad_label_map(labels, reduce_zero_label, level, kind, tmp_path):
    (problem,) = check_pair(pair(tmp_path, labels, reduce_zero_label), num_classes=3)
    assert (problem.level, problem.kind) == (level, kind)


@pytest.mark.parametrize(
    'labels, reduce_zero_label', [(label_map(0, 1, 2, 3, 255), True), (label_map(0, 1, 2), False)]
)
def test_good_label_map(labels, reduce_zero_label, tmp_path):
    assert check_pair(pair(tmp_path, labels, reduce_zero_label), num_classes=3) == []


def test_label_map_of_chosen_classes_is_applied_as_mmseg_does(tmp_path):
    info = pair(tmp_path, label_map(0, 1, 2, 3))
    info['label_map'] = {0: 255, 1: 0, 2: 1}  # after the zero label is gone
    assert check_pair(info, num_classes=2) == []


@pytest.mark.parametrize('content', [None, b'', b'no image', PNG[:60]])
def test_unreadable_label_map(content, tmp_path):
    info = pair(tmp_path, label_map(1))
    (tmp_path / 'labels.png').unlink()
    if content is not None:
        (tmp_path / 'labels.png').write_bytes(content)
    (problem,) = check_pair(info, num_classes=3)
    assert (problem.level, problem.kind) == (ERROR, 'label map cannot be read')


# Anything ------------------------------------------------------------------------------------

FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@st.composite
def image_files(draw):
    """Images of many kinds, as they are or damaged."""
    mode = draw(st.sampled_from(['RGB', 'L', 'RGBA', 'CMYK', 'I;16', '1', 'P']))
    form = draw(st.sampled_from(['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF']))
    size = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    image = Image.new('I;16' if mode == 'I;16' else mode, size, draw(st.integers(0, 255)))
    try:
        content = bytearray(encode(image, form))
    except (OSError, KeyError, ValueError):  # no such mode in this format
        content = bytearray(encode(image.convert('RGB'), form))
    for position, value in draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@given(image_files())
@settings(FUZZ, max_examples=400)
def test_an_image_that_passes_is_loaded_by_mmcv(tmp_path_factory, content):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path_factory.getbasetemp() / 'fuzzed.png'
    path.write_bytes(content)
    if not any(problem.level == ERROR for problem in check_image(path)):
        pixels = LoadImageFromFile()(dict(img_path=str(path)))['img']
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


numbers = st.one_of(st.integers(-50, 90), st.floats(-50, 90), st.floats(), st.just(10**15))
junk = st.one_of(
    st.none(), st.booleans(), numbers, st.text(string.printable, max_size=6), st.lists(numbers)
)
masks = st.one_of(
    st.lists(st.lists(numbers, max_size=8), max_size=2),
    st.fixed_dictionaries(
        {
            'size': st.sampled_from([[30, 40], [40, 30], [1]]),
            'counts': st.one_of(
                st.lists(st.integers(-1, 1200), max_size=3),
                st.text(string.printable, max_size=8),
                st.just([0, 1200]),
            ),
        }
    ),
    junk,
)
fields = {
    'bbox': st.one_of(st.lists(numbers, min_size=4, max_size=4), junk),
    'area': junk,
    'segmentation': masks,
    'category_id': st.one_of(st.sampled_from([3, 7, 9]), junk),
    'image_id': st.one_of(st.sampled_from([1, 2, 5]), junk),
    'id': st.one_of(st.sampled_from([10, 20]), junk),
    'iscrowd': st.one_of(st.sampled_from([0, 1]), junk),
    'file_name': st.one_of(st.just('2.png'), junk),
    'width': junk,
    'name': st.one_of(st.sampled_from(CLASSES), junk),
}


@st.composite
def annotation_files(draw):
    coco = copy.deepcopy(good_coco())
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(['annotations', 'annotations', 'images', 'categories']))
        entry = draw(st.sampled_from(coco[part]))
        key = draw(st.sampled_from(sorted(set(fields) & set(entry)) or ['id']))
        if draw(st.integers(0, 9)) == 0:
            entry.pop(key, None)
        else:
            entry[key] = draw(fields[key])
    return json.dumps(coco)


@given(annotation_files())
@settings(FUZZ, max_examples=500)
def test_annotations_that_pass_are_loaded_by_mmdet(folder, text):
    datasets = pytest.importorskip('mmdet.datasets')
    problems, images = check(folder, text)
    problems += [problem for image in images for problem in check_image(*image)]
    if any(problem.level == ERROR for problem in problems):
        return
    pipeline = [
        dict(type=LoadImageFromFile),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='mmdet.PackDetInputs'),
    ]
    dataset = datasets.CocoDataset(
        ann_file=str(folder / 'annotations.json'),
        data_prefix=dict(img=str(folder)),
        metainfo=dict(classes=CLASSES),
        pipeline=pipeline,
    )
    for sample in dataset:
        assert np.isfinite(sample['data_samples'].gt_instances.bboxes.tensor.numpy()).all()


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(['L', 'P', 'RGB', '1']),
)
@settings(FUZZ, max_examples=200)
def test_labels_that_pass_are_classes_for_mmseg(tmp_path_factory, values, reduce_zero, mode):
    transforms = pytest.importorskip('mmseg.datasets.transforms')
    folder = tmp_path_factory.getbasetemp()
    info = pair(folder, label_map(*values), reduce_zero)
    Image.open(info['seg_map_path']).convert(mode).save(info['seg_map_path'])
    if any(problem.level == ERROR for problem in check_pair(info, num_classes=3)):
        return
    labels = transforms.LoadAnnotations()(dict(info, seg_fields=[]))['gt_seg_map']
    assert labels.shape == (30, 40) and set(np.unique(labels)) <= {0, 1, 2, 255}


# The command line ----------------------------------------------------------------------------


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


def test_config_without_data_sets_is_refused(tmp_path, capsys):
    Config(dict(default_scope='mmdet')).dump(tmp_path / 'own.py')
    with pytest.raises(SystemExit) as stop:
        run_tool('check_dataset', tmp_path / 'own.py')
    assert 'no data set' in stop.value.code
