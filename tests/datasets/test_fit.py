"""A model that does not fit its data: one message before the first iteration."""

import json
import shutil

import numpy as np
import pytest
from helpers import CONFIGS, run_tool, tool_error
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.datasets import ERROR, WARNING, fit
from mmpoolformer.datasets.evaluation import check_evaluation
from mmpoolformer.datasets.fit import (
    check_categories,
    check_counts,
    check_fit,
    check_single_class,
    is_class_agnostic,
    name_counts,
    read_categories,
)

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py'
MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_digits.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py'
REMEDY = 'metainfo=dict(classes='


def refusals(config, root, tmp_path, capsys, change):
    """What ``train.py`` and ``check_dataset.py`` say of a changed config."""
    cfg = Config.fromfile(config)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{root}/'
        if 'ann_file' in cfg[f'{split}_dataloader'].dataset and split != 'train':
            cfg[f'{split}_evaluator'].ann_file = f'{root}/annotations/instances_validation.json'
    change(cfg)
    path = tmp_path / 'slip.py'
    cfg.dump(path)
    message = tool_error(capsys, 'train', path, '--work-dir', tmp_path / 'work')
    with pytest.raises(SystemExit):
        run_tool('check_dataset', path, '--workers', 0, '--out', tmp_path / 'problems.txt')
    return message, (tmp_path / 'problems.txt').read_text()


def set_classes(cfg, classes, *splits):
    for split in splits or ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)


def forget_metainfo(cfg):
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pop('metainfo')
    cfg.model.bbox_head.num_classes = 80


DIGITS = tuple('0123456789')
DETECTION_SLIPS = {
    'num_classes left at 80': (
        lambda cfg: cfg.model.bbox_head.update(num_classes=80),
        ['model.bbox_head.num_classes=80', '10 classes'],
    ),
    'num_classes too small': (
        lambda cfg: cfg.model.bbox_head.update(num_classes=9),
        ['model.bbox_head.num_classes=9', '10 classes'],
    ),
    'a class misspelt in the train set only': (
        lambda cfg: set_classes(cfg, ('zero', *DIGITS[1:]), 'train'),
        ['the config has zero', 'not among its 10 categories'],
    ),
    'no comma': (
        lambda cfg: set_classes(cfg, 'disc'),
        ["classes='disc' is a text", "classes=('disc',)"],
    ),
    'classes that are numbers': (
        lambda cfg: set_classes(cfg, tuple(range(10))),
        ['classes=0, 1, 2', "are no texts: write ('0', '1', "],
    ),
    'metainfo and num_classes forgotten': (
        forget_metainfo,
        ['person', 'not among its 10 categories: 0, 1, 2', REMEDY],
    ),
    'classes in another order': (
        lambda cfg: set_classes(cfg, DIGITS[::-1]),
        ['the file has 0, 1, 2', 'the config 9, 8, 7', 'order'],
    ),
    'data sets of different classes': (
        lambda cfg: set_classes(cfg, DIGITS[:9], 'val', 'test'),
        ['val has 0, 1', 'train has 0, 1'],
    ),
}


@pytest.mark.parametrize('slip', DETECTION_SLIPS)
def test_slips_of_detection(slip, digits_root, tmp_path, capsys):
    change, words = DETECTION_SLIPS[slip]
    for message in refusals(RETINANET, digits_root, tmp_path, capsys, change):
        assert all(word in message for word in words), message


def reorder(path):
    coco = json.loads(path.read_text())
    coco['categories'].reverse()
    other = path.with_name('reordered.json')
    other.write_text(json.dumps(coco))
    return other


def reorder_the_validation_file(cfg, file, tmp_path):
    cfg.val_dataloader.dataset.ann_file = cfg.val_evaluator.ann_file = str(file)


def reorder_what_the_metric_reads(cfg, file, tmp_path):
    cfg.val_evaluator.ann_file = str(file)


def take_classes_from_a_file(cfg, file, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(DIGITS[::-1]))
    set_classes(cfg, str(tmp_path / 'classes.txt'))


def join_two_orders(cfg, file, tmp_path):
    first = cfg.train_dataloader.dataset
    second = dict(first.to_dict(), ann_file=str(file), metainfo=dict(classes=DIGITS[::-1]))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])


@pytest.mark.parametrize(
    'change, words',
    [
        (reorder_the_validation_file, ['reordered.json', 'the file has 9, 8', 'config 0, 1']),
        (reorder_what_the_metric_reads, ['reordered.json', 'the file has 9, 8', 'config 0, 1']),
        (take_classes_from_a_file, ['the file has 0, 1', 'the config 9, 8']),
        (join_two_orders, ['train.datasets.1 has 9, 8', 'train.datasets.0 has 0, 1']),
    ],
)
def test_two_orders_of_the_same_categories(change, words, digits_root, tmp_path, capsys):
    """mmdet takes labels in each file's order, and trains on one and evaluates on another."""
    shutil.copytree(digits_root, tmp_path / 'digits')
    file = reorder(tmp_path / 'digits' / 'annotations' / 'instances_validation.json')
    if change is join_two_orders:
        file = reorder(tmp_path / 'digits' / 'annotations' / 'instances_training.json')

    def slip(cfg):
        change(cfg, file, tmp_path)

    for message in refusals(RETINANET, tmp_path / 'digits', tmp_path, capsys, slip):
        assert all(word in message for word in words), message


def score_another_file(cfg, root):
    cfg.val_evaluator.ann_file = f'{root}/annotations/instances_training.json'


def rename_the_images(cfg, root):
    file = root / 'annotations' / 'instances_validation.json'
    cfg.val_evaluator.ann_file = str(shutil.copy(file, root / 'in.json'))
    coco = json.loads(file.read_text())
    coco['images'][0]['file_name'] = 'other.png'
    (root / 'in.json').write_text(json.dumps(coco))


def resize_an_image(cfg, root):
    rename_the_images(cfg, root)
    coco = json.loads((root / 'annotations' / 'instances_validation.json').read_text())
    coco['images'][0]['width'] += 1
    (root / 'in.json').write_text(json.dumps(coco))


def score_more_images(cfg, root):
    joined = json.loads((root / 'annotations' / 'instances_validation.json').read_text())
    joined['images'].append(dict(joined['images'][0], id=10**6, file_name='never_shown.png'))
    (root / 'annotations' / 'joined.json').write_text(json.dumps(joined))
    cfg.val_evaluator.ann_file = f'{root}/annotations/joined.json'


def score_fewer_images(cfg, root):
    part = json.loads((root / 'annotations' / 'instances_validation.json').read_text())
    part['images'].pop(0)
    (root / 'annotations' / 'part.json').write_text(json.dumps(part))
    cfg.val_evaluator = [cfg.val_evaluator, dict(cfg.val_evaluator)]
    cfg.val_evaluator[1].ann_file = f'{root}/annotations/part.json'


def join_sets_of_the_same_ids(cfg, root):
    first = cfg.val_dataloader.dataset
    second = dict(first.to_dict(), ann_file='annotations/instances_training.json')
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])


@pytest.mark.parametrize(
    'change, words',
    [
        (score_another_file, ['another file is scored', 'other boxes', 'instances_training']),
        (rename_the_images, ["image 0 is another one, '00000.jpg' and not 'other.png'", 'in.json']),
        (resize_an_image, ['image 0 is another one', 'in.json']),
        (score_more_images, ['1 of 3 images of', 'never_shown.png', 'would count as missed']),
        (score_fewer_images, ['val_evaluator.1.ann_file', 'there are other images', 'part.json']),
        (join_sets_of_the_same_ids, ['another file is scored', 'instances_training']),
    ],
)
def test_a_metric_that_reads_other_images_than_the_data_set(
    change, words, digits_root, tmp_path, capsys
):
    root = shutil.copytree(digits_root, tmp_path / 'digits')
    for message in refusals(RETINANET, root, tmp_path, capsys, lambda cfg: change(cfg, root)):
        assert all(word in message for word in words), message


def test_a_metric_of_each_joined_data_set_reads_its_file(digits_root):
    cfg = Config.fromfile(RETINANET)
    init_default_scope('mmdet')
    leaf, metric = cfg.val_dataloader.dataset.to_dict(), cfg.val_evaluator.to_dict()
    leaf['data_root'] = f'{digits_root}/'
    names = ['training', 'validation']
    files = [f'{digits_root}/annotations/instances_{name}.json' for name in names]
    leaves = [dict(leaf, ann_file=file) for file in files]
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=leaves)
    metrics = [dict(metric, ann_file=file) for file in files]
    cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=names)
    assert list(check_evaluation(cfg)) == []


TTA = dict(type='TestTimeAug', transforms=[[dict(type='RandomFlip', prob=1.0)]])


@pytest.mark.parametrize(
    'change, word',
    [
        (dict(drop_last=True), 'drop_last'),
        (dict(batch_sampler=dict(type='BatchSampler', drop_last=True)), 'drop_last'),
        (dict(sampler=dict(type='ClassAwareSampler')), 'DefaultSampler'),
        (dict(dataset=dict(type='RepeatDataset', times=2)), 'several times'),
        (dict(dataset=dict(pipeline=[dict(type='RandomFlip', prob=0.5)])), 'RandomFlip'),
        (dict(dataset=dict(pipeline=[dict(type='TranslateX')])), 'TranslateX moves'),
        (dict(dataset=dict(pipeline=[dict(type='Pad')])), 'Pad pads'),
        (dict(dataset=dict(pipeline=[dict(type='PhotoMetricDistortion')])), 'at random'),
        (dict(dataset=dict(pipeline=[TTA])), 'RandomFlip'),
    ],
    ids=str,
)
@pytest.mark.parametrize('config', [RETINANET, SEM_FPN], ids=['boxes', 'labels'])
def test_an_evaluation_sees_each_image_once_as_it_is(config, change, word):
    cfg = Config.fromfile(config)
    assert not list(check_evaluation(cfg))
    dataset = cfg.val_dataloader.dataset
    if 'dataset' in change:
        inner = dict(dataset=dataset) if 'times' in change['dataset'] else dataset
        cfg.val_dataloader.dataset = dict(inner, **change['dataset'])
    else:
        cfg.val_dataloader.update(change)
    problems = [problem for problem in check_evaluation(cfg) if word in problem.detail]
    fine = dict(RandomFlip=TTA in cfg.val_dataloader.dataset.get('pipeline', []))
    fine.update({'TranslateX moves': config == SEM_FPN, 'Pad pads': config == RETINANET})
    is_fine = fine.get(word, False)
    assert [problem.level for problem in problems] == ([] if is_fine else [ERROR])


@pytest.mark.parametrize('is_before', [True, False])
def test_boxes_that_are_resized_before_they_are_compared(is_before):
    cfg = Config.fromfile(RETINANET)
    steps = [dict(type='LoadAnnotations'), dict(type='Resize')]
    cfg.val_dataloader.dataset.pipeline = steps if is_before else steps[::-1]
    cfg.val_evaluator = dict(type='VOCMetric', metric='mAP')
    kinds = [problem.kind for problem in check_evaluation(cfg)]
    assert kinds == (['boxes of another size'] if is_before else [])


def test_a_metric_whose_categories_have_each_others_ids(digits_root, tmp_path):
    cfg = Config.fromfile(RETINANET)
    cfg.val_dataloader.dataset.data_root = f'{digits_root}/'
    content = json.loads((digits_root / 'annotations' / 'instances_validation.json').read_text())
    first, second, *_ = content['categories']
    first['id'], second['id'] = second['id'], first['id']
    (tmp_path / 'a.json').write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(tmp_path / 'a.json')
    assert 'another file is scored' in [problem.kind for problem in check_evaluation(cfg)]


def test_joined_images_of_one_id_need_a_metric_each(digits_root):
    cfg = Config.fromfile(RETINANET)
    leaf = dict(cfg.val_dataloader.dataset, data_root=f'{digits_root}/')
    names = ('training', 'validation')
    leaves = [dict(leaf, ann_file=f'annotations/instances_{name}.json') for name in names]
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=leaves)
    cfg.val_evaluator = dict(type='CocoMetric', metric='bbox')
    (problem,) = check_evaluation(cfg)
    assert problem.level == ERROR and problem.kind == 'images of one id'


@pytest.mark.parametrize('key, where', [('indices', 'dataset'), ('drop_last', None)])
def test_a_part_of_the_images_is_not_scored_as_all(key, where, digits_root):
    cfg = Config.fromfile(RETINANET)
    cfg.val_dataloader.dataset.update(data_root=f'{digits_root}/')
    (cfg.val_dataloader[where] if where else cfg.val_dataloader)[key] = 1
    problems = list(check_evaluation(cfg))
    assert [problem.level for problem in problems if key in problem.detail] == [ERROR]


def test_boxes_that_are_none_are_left_to_the_check_of_the_file(digits_root, tmp_path):
    cfg = Config.fromfile(RETINANET)
    file = digits_root / 'annotations' / 'instances_validation.json'
    coco = json.loads(file.read_text())
    coco['annotations'][0]['bbox'] = [None, 1, 1, 1]
    (tmp_path / 'other.json').write_text(json.dumps(coco))
    cfg.val_dataloader.dataset.update(data_root='', ann_file=str(file))
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    assert list(check_evaluation(cfg)) == []


@pytest.mark.parametrize(
    'loss, count',
    [
        (None, 1),
        (dict(type='CrossEntropyLoss'), 1),
        (dict(type='CrossEntropyLoss', use_sigmoid=True), 0),
        ([dict(type='DiceLoss'), dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False)], 1),
    ],
)
def test_softmax_over_one_class(loss, count):
    head = dict(type='FPNHead', num_classes=1)
    model = dict(decode_head=head if loss is None else dict(head, loss_decode=loss))
    assert len(list(check_single_class(model))) == count
    assert not list(check_single_class(dict(bbox_head=head)))


def test_copies_of_a_file_are_the_same_images(digits_root, tmp_path):
    cfg = Config.fromfile(RETINANET)
    file = digits_root / 'annotations' / 'instances_validation.json'
    cfg.val_dataloader.dataset.update(data_root='', ann_file=str(file))
    cfg.val_evaluator.ann_file = str(shutil.copy(file, tmp_path / 'copy.json'))
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    assert list(check_evaluation(cfg)) == []
    cfg.test_dataloader.dataset.update(test_mode=False, filter_cfg=dict(filter_empty_gt=True))
    assert {problem.level for problem in check_evaluation(cfg)} == {WARNING}


def test_box_and_mask_heads_of_different_sizes(digits_root, tmp_path, capsys):
    def change(cfg):
        cfg.model.roi_head.mask_head.num_classes = 80

    for message in refusals(MASK_RCNN, digits_root, tmp_path, capsys, change):
        assert 'model.roi_head.mask_head.num_classes=80' in message and '10 classes' in message


@pytest.mark.parametrize('count', [6, 8, 150])
def test_heads_of_segmentation(count, digits_root, tmp_path, capsys):
    def change(cfg):
        cfg.model.decode_head.num_classes = count

    for message in refusals(SEM_FPN, digits_root, tmp_path, capsys, change):
        assert f'model.decode_head.num_classes={count}' in message and '7 classes' in message


@pytest.fixture
def own_labels(tmp_path):
    """Images and label maps of the values that are asked for."""

    def make(values, count=4):
        rng = np.random.default_rng(0)
        for split in ('training', 'validation'):
            for folder in ('images', 'annotations'):
                (tmp_path / 'data' / folder / split).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
                labels = rng.choice(values, (8, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(image).save(tmp_path / f'data/images/{split}/{number}.jpg')
                Image.fromarray(labels).save(tmp_path / f'data/annotations/{split}/{number}.png')
        return tmp_path / 'data'

    return make


def use_four_classes(cfg, reduce_zero_label):
    cfg.model.decode_head.num_classes = 4
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.metainfo = dict(classes=tuple('abcd'), palette=[[k, 0, 0] for k in range(4)])
        dataset.reduce_zero_label = reduce_zero_label


def test_inherited_reduce_zero_label(own_labels, tmp_path, capsys):
    root = own_labels([0, 1, 2, 3])
    for message in refusals(
        SEM_FPN, root, tmp_path, capsys, lambda cfg: use_four_classes(cfg, True)
    ):
        assert 'reduce_zero_label=True takes label 0 as unlabelled' in message
        assert "would be 'd'" in message and 'reduce_zero_label=False' in message


@pytest.mark.parametrize(
    'key',
    ['model.decode_head', 'train_dataloader.dataset', 'test_dataloader.dataset', 'val_evaluator'],
)
def test_labels_that_only_a_part_ignores(key):
    cfg = Config.fromfile(SEM_FPN)
    init_default_scope('mmseg')
    assert not list(fit.check_ignored(cfg))
    cfg.merge_from_dict({f'{key}.ignore_index': 254})
    problems = list(fit.check_ignored(cfg))
    assert {problem.level for problem in problems} == {ERROR}
    assert any(key in problem.detail and '=254' in problem.detail for problem in problems)


def test_a_rare_last_class_is_one(own_labels, digits_root):
    cfg = Config.fromfile(SEM_FPN)
    root = own_labels([0, 1, 2, 3])
    use_four_classes(cfg, True)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{root}/'
    last = sorted((root / 'annotations' / 'training').iterdir())[-1]
    labels = np.array(Image.open(last))
    labels[0, 0] = 4
    Image.fromarray(labels).save(last)
    assert not [problem for problem in check_fit(cfg) if problem.level == ERROR]


def test_labels_that_count_from_one(own_labels, tmp_path, capsys):
    root = own_labels([1, 2, 3, 4])
    for message in refusals(
        SEM_FPN, root, tmp_path, capsys, lambda cfg: use_four_classes(cfg, False)
    ):
        assert 'they count from 1' in message and 'reduce_zero_label=True' in message


def test_label_maps_in_jpeg_are_refused(own_labels, tmp_path, capsys):
    root = own_labels([0, 1, 2, 3])
    for path in (root / 'annotations' / 'training').iterdir():
        Image.open(path).save(path, 'JPEG')  # and with the suffix .png
    for message in refusals(
        SEM_FPN, root, tmp_path, capsys, lambda cfg: use_four_classes(cfg, False)
    ):
        assert 'label map stored as JPEG' in message and 'PNG' in message


@pytest.mark.parametrize('left', [0, 1])
def test_images_of_another_suffix_are_named(left, own_labels, tmp_path):
    root = own_labels([0, 1, 2, 3])
    for path in sorted((root / 'images' / 'training').iterdir())[left:]:
        path.rename(path.with_suffix('.png'))
    cfg = Config.fromfile(SEM_FPN)
    use_four_classes(cfg, False)
    cfg.train_dataloader.dataset.data_root = str(root)
    cfg.val_dataloader = cfg.test_dataloader = None
    init_default_scope('mmseg')
    (problem,) = check_fit(cfg)
    assert problem.level == (WARNING if left else ERROR)
    assert f'{4 - left} of 4 images do not end in .jpg' in problem.detail
    assert "img_suffix='.png'" in problem.detail


def test_metainfo_of_another_data_set(own_labels, tmp_path, capsys):
    def change(cfg):
        cfg.model.decode_head.num_classes = 4

    for message in refusals(SEM_FPN, own_labels([1, 2, 3, 4]), tmp_path, capsys, change):
        assert 'num_classes=4' in message and '7 classes: brick, grass' in message


@pytest.mark.parametrize(
    'things, stuff, classes, is_right',
    [(3, 0, 'abc', True), (2, 0, 'abc', False), (2, 1, 'abc', True), (3, 1, 'abc', False)],
)
def test_things_and_stuff_are_the_classes(things, stuff, classes, is_right):
    """Of Mask2Former and Panoptic FPN, whose boxes are those of things."""
    head = dict(num_things_classes=things, num_stuff_classes=stuff)
    model = dict(panoptic_head=head, roi_head=dict(bbox_head=dict(num_classes=things)))
    assert not is_class_agnostic(model)
    assert bool(list(check_counts(model, tuple(classes), 'train'))) is not is_right


def test_orders_of_classes_are_compared_for_mask2former(digits_root):
    cfg = Config.fromfile(find_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'))
    leaf = Config.fromfile(MASK_RCNN).train_dataloader.dataset
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset = dict(leaf, data_root=f'{digits_root}/')
        cfg[f'{split}_evaluator'] = None
    for part in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
        part.update(num_things_classes=10, num_stuff_classes=0)
    assert not list(check_fit(cfg))
    set_classes(cfg, DIGITS[::-1], 'val')
    assert 'data sets of different classes' in [problem.kind for problem in check_fit(cfg)]


@pytest.mark.parametrize('where', ['first', 'last', 'twice'])
def test_categories_are_found_wherever_they_stand(where, tmp_path):
    categories = [dict(id=7, name='b'), dict(id=3, name='ä')]
    coco = dict(images=[], annotations=[], info=dict(text='"categories"'))
    coco = dict(categories=categories, **coco) if where == 'first' else coco
    if where == 'twice':
        coco['info']['categories'] = [1]
    coco.setdefault('categories', categories)
    (tmp_path / 'a.json').write_text(json.dumps(coco, ensure_ascii=False))
    assert read_categories(tmp_path / 'a.json') == categories
    assert list(check_categories(tmp_path / 'a.json', ('b', 'ä'))) == []
    assert [p.kind for p in check_categories(tmp_path / 'a.json', ('ä', 'b'))] == [
        'classes in another order'
    ]


def test_categories_whose_key_is_escaped_are_found(tmp_path):
    categories = [dict(id=7, name='b'), dict(id=3, name='a')]
    text = json.dumps(dict(info=dict(categories=[dict(name='c')]), other=categories))
    (tmp_path / 'a.json').write_text(text.replace('other', 'categ\\u006fries'))
    assert read_categories(tmp_path / 'a.json') == categories


def test_a_character_at_the_end_of_what_is_read_of_a_large_file(tmp_path):
    categories = '"categories":[{"id":1,"name":"b"},{"id":2,"name":"a"}]'
    for start in ('', 'x'):  # one of them cuts an "ä"
        text = f'{{{categories},"info":"{start}{"ä" * 2**23}","images":[],"annotations":[]}}'
        (tmp_path / 'a.json').write_text(text, encoding='utf-8')
        (problem,) = check_categories(tmp_path / 'a.json', ('a', 'b'))
        assert problem.kind == 'classes in another order'


def test_counts_of_heads_that_tell_no_classes_apart():
    head = dict(type='Shared2FCBBoxHead', num_classes=80)
    model = dict(roi_head=dict(bbox_head=[dict(head, class_agnostic=True), dict(head)]))
    assert [count.key for count in name_counts(model)] == ['model.roi_head.bbox_head.1.num_classes']
