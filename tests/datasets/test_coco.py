"""Bad annotations: each is found, and what passes the check loads in mmdet."""

import copy
import json
import string

import numpy as np
import pytest
from bad_files import CLASSES, FUZZ, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile

from mmpoolformer.datasets import ERROR, WARNING, check_coco, check_image

POLYGON = [5, 5, 20, 5, 20, 15]
# One run of all 1,200 pixels, in seven characters: COCO's tools shift beyond 32 bits.
LONG_RUN = ''.join(chr(48 + bits) for bits in (48, 37, 33, 32, 32, 32, 0))
HUGE = [[1e18, 0, 5, 1e18, 3, 3]]


def good_coco():
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
                'segmentation': [POLYGON],
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


NO_PIXELS = 'mask without pixels'
MASK = {'size': [30, 40], 'counts': [100, 50, 1050]}


@pytest.mark.parametrize('filter_cfg', [dict(min_size=31), dict(filter_empty_gt=True)], ids=str)
def test_a_filter_that_leaves_nothing(filter_cfg, folder):
    coco = good_coco()
    (folder / 'annotations.json').write_text(json.dumps(coco))
    problems, _ = check_coco(folder / 'annotations.json', folder, CLASSES, True, filter_cfg)
    kinds = [problem.kind for problem in problems if problem.level == ERROR]
    assert kinds == (['no image to train on'] if 'min_size' in filter_cfg else [])


@pytest.mark.parametrize(
    'coco, level, kind',
    [
        ('{"images": [', ERROR, 'broken JSON'),
        ('[]', ERROR, 'no COCO annotations'),
        (without('images', 'height'), ERROR, 'broken image entry'),
        (changed('images', width=2**26), ERROR, 'broken image entry'),
        (changed('annotations', bbox=[5, 5, 0, 9], segmentation=[]), ERROR, 'no mask'),
        (changed('annotations', iscrowd=2**63), ERROR, 'broken annotation'),
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
        (
            changed('annotations', segmentation=[[1, 2, 3] * 3]),
            WARNING,
            'mask without area, ignored',
        ),
        (changed('annotations', segmentation=[[1, 2, 3]]), ERROR, 'broken mask'),
        (changed('annotations', segmentation=[[], POLYGON]), ERROR, 'broken mask'),
        (changed('annotations', segmentation=[[1, 2, 3, 4], POLYGON]), ERROR, 'broken mask'),
        (changed('annotations', segmentation=dict(MASK, counts=LONG_RUN)), ERROR, 'broken mask'),
        (changed('annotations', bbox=[5, 5, 0, 0], segmentation=HUGE), ERROR, 'broken mask'),
        (changed('annotations', bbox=[90, 5, 9, 9], segmentation=HUGE), ERROR, 'broken mask'),
        (changed('annotations', ignore='0', segmentation=HUGE), ERROR, 'broken mask'),
        (changed('annotations', ignore='0'), WARNING, 'ignored annotation'),
        (changed('categories', name='dog'), ERROR, 'category names used twice'),
        (changed('images', file_name='./2.png'), ERROR, 'image files listed twice'),
        (changed('annotations', id=0), WARNING, 'annotation id 0'),
        (changed('annotations', id=2**53 + 1), ERROR, 'id in annotations too large'),
        (changed('images', id=-(2**60)), ERROR, 'id in images too large'),
        (without('annotations', 'iscrowd'), WARNING, 'annotations without iscrowd'),
        ('\ufeff{}', ERROR, 'broken JSON'),
        (changed('annotations', segmentation=[['a'] * 6]), ERROR, 'broken mask'),
        (
            changed('annotations', segmentation=dict(MASK, size=[40, 30])),
            ERROR,
            'mask of another size',
        ),
        (changed('annotations', segmentation=dict(MASK, counts=[7])), ERROR, 'broken mask'),
        (
            changed('annotations', segmentation=[[0, 0, 999_999, 0] * 50]),
            ERROR,
            'broken mask',
        ),
        (changed('annotations', segmentation=[[10**400] * 6]), ERROR, 'broken mask'),
        (changed('annotations', bbox=[10**400, 1, 1, 1]), ERROR, 'broken box'),
        (changed('annotations', segmentation=dict(MASK, counts='?!')), ERROR, 'broken mask'),
        (changed('annotations', segmentation=[[50, 5, 60, 5, 55, 9]]), ERROR, NO_PIXELS),
        (changed('annotations', segmentation=[[9, 9, 9.1, 9.1, 9.2, 9.2]]), ERROR, NO_PIXELS),
        (changed('annotations', segmentation=dict(MASK, counts=[1200])), ERROR, NO_PIXELS),
        (changed('annotations', segmentation=dict(MASK, counts='`U1')), ERROR, NO_PIXELS),
        (changed('images', file_name='\udc80.png'), ERROR, 'broken image entry'),
        (
            dict(
                good_coco(), images=[*good_coco()['images'], dict(good_coco()['images'][0], id=99)]
            ),
            ERROR,
            'image files listed twice',
        ),
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


@pytest.mark.parametrize(
    ('fields', 'level', 'kind'),
    [
        (dict(bbox=[20, 15, 38, 29]), ERROR, 'boxes of another kind'),
        (dict(bbox=[-3, 15, 50, 29]), WARNING, 'box over the edge of the image'),  # not clipped
        (dict(iscrowd=1), ERROR, 'no usable annotation'),
    ],
    ids=['corners', 'not clipped', 'crowds'],
)
def test_what_all_annotations_have(fields, level, kind, folder):
    coco = good_coco()
    coco['annotations'] = [
        dict(coco['annotations'][0], id=number, **fields) for number in range(1, 12)
    ]
    problems, _ = check(folder, coco)
    assert (level, kind) in [(p.level, p.kind) for p in problems]
    assert level == ERROR or ERROR not in [p.level for p in problems]


def test_many_crowds_are_said(folder):
    coco = good_coco()
    coco['annotations'][0]['iscrowd'] = 1
    problems, _ = check(folder, coco)
    assert 'many crowds' in [p.kind for p in problems if p.level == WARNING]


def test_corners_of_a_few(folder):
    problems, _ = check(folder, changed('annotations', bbox=[20, 15, 38, 29]))
    assert ERROR not in [problem.level for problem in problems]


def test_the_mask_of_a_crowd_is_not_trained(folder):
    coco = changed('annotations', iscrowd=1, segmentation=dict(MASK, counts=[1200]))
    problems, _ = check(folder, coco)
    assert [problem.kind for problem in problems] == ['many crowds']


def test_classes_that_are_no_texts_are_named(folder):
    path = folder / 'annotations.json'
    path.write_text(json.dumps(good_coco()))
    problems, _ = check_coco(path, folder, (0, 1), with_masks=False)
    assert 'not among its categories: 0, 1' in [problem.detail for problem in problems]


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
