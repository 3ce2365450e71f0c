"""Own images and annotations in configs of both toolboxes."""

import json
import random

import numpy as np
import pytest
import torch
from helpers import CONFIGS, run_tool, tool_error
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, init_default_scope
from PIL import Image

from mmpoolformer import OwnDataError, own_data_changes, use_dataset
from mmpoolformer.adapt.edit import Edit
from mmpoolformer.adapt.own_data.schedule import set_schedule
from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.datasets.fit import check_fit

CLASSES = ('screw', 'nut', 'washer')


def read(name):
    path = find_config(name) if '::' in name else next(CONFIGS.glob(f'*/{name}.py'))
    cfg = Config.fromfile(path, import_custom_modules=False)
    init_default_scope(cfg.default_scope)
    return cfg


DETECTORS = {
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': 2,
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': 4,
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 1,
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': 1,
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': 1,
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': 0,
    'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py': 1,
    'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py': 2,
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': None,
}


@pytest.mark.parametrize('name', DETECTORS)
def test_every_head_of_a_detector_has_the_classes(name, own_coco):
    cfg = read(name)
    if DETECTORS[name] is None:
        with pytest.raises(OwnDataError, match='without labels'):
            use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
        return
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert list(check_fit(new)) == []
    counts = [key for key, value in flatten(new.model) if key.endswith('num_classes')]
    heads = [key for key in counts if 'rpn_head' not in key and 'backbone' not in key]
    assert len(heads) >= DETECTORS[name]
    for key, value in flatten(new.model):
        if key in heads or key.endswith('num_things_classes'):
            assert value == 3, key
        if key.endswith('class_weight') and isinstance(value, list):
            assert len(value) == 4
    train = DATASETS.build(new.train_dataloader.dataset)
    val = DATASETS.build(new.val_dataloader.dataset)
    assert (len(train), len(val)) == (8, 2)
    assert train.metainfo['classes'] == val.metainfo['classes'] == CLASSES
    METRICS.build(new.val_evaluator)
    cfg_again = read(name)
    assert cfg.to_dict() == cfg_again.to_dict()


def flatten(node, path=''):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)) and node and isinstance(node[0], (dict, list, tuple)):
        for key, value in enumerate(node):
            yield from flatten(value, f'{path}.{key}')
    else:
        yield path, list(node) if isinstance(node, tuple) else node


SEGMENTORS = [
    'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_every_head_of_a_segmentor_has_the_classes(name, own_label_maps):
    new = use_dataset(
        read(name),
        own_label_maps / 'images',
        own_label_maps / 'labels',
        classes=own_label_maps / 'classes.txt',
    )
    assert list(check_fit(new)) == []
    for key, value in flatten(new.model):
        if key.endswith('num_classes') and 'backbone' not in key:
            assert value == 4, key
        if key.endswith('class_weight') and isinstance(value, list):
            assert len(value) == 5
    val = DATASETS.build(new.val_dataloader.dataset)
    assert len(val) == 2 and val.metainfo['classes'] == ('sky', 'roof', 'wall', 'ground')
    labels = val[0]['data_samples'].gt_sem_seg.data
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    METRICS.build(new.val_evaluator)


@pytest.mark.parametrize(
    ('name', 'epochs'),
    [
        ('retinanet_poolformer-s12_fpn_1x_coco', 1),
        ('retinanet_poolformer-s12_fpn_1x_coco', 3),
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 2),
    ],
)
def test_a_short_training_leaves_its_warm_up(name, epochs, own_coco):
    """mmengine counts to one less than its length: one step would never end."""
    new = use_dataset(read(name), own_coco / 'images', own_coco / 'all.json', epochs=epochs)
    steps = max(4, epochs * 8)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warm_up = dict(new.param_scheduler[0])
    assert warm_up['type'] == 'LinearLR' and not warm_up['by_epoch']
    scheduler = PARAM_SCHEDULERS.build(warm_up, default_args=dict(optimizer=optimizer))
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]['lr'] == 1.0


@pytest.mark.parametrize('epochs', [1, 3, 10])
@pytest.mark.parametrize(
    'name',
    [
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        'rtmdet-s_poolformer-s24_4xb32-100e_coco',
        'retinanet_poolformer-s12_fpn_1x_coco',
    ],
)
def test_every_part_of_a_short_schedule_has_steps(name, epochs, own_coco):
    new = use_dataset(read(name), own_coco / 'images', own_coco / 'all.json', epochs=epochs)
    parts = [(part.get('begin', 0), part['end']) for part in new.param_scheduler]
    assert parts[0][0] == 0 and all(begin < end for begin, end in parts)


def test_the_decay_begins_where_a_short_warm_up_ends():
    edit = Edit(
        Config(
            dict(
                train_cfg=dict(max_iters=160000),
                train_dataloader=dict(batch_size=2),
                param_scheduler=[
                    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
                    dict(type='PolyLR', by_epoch=False, begin=1500, end=160000),
                ],
            )
        )
    )
    set_schedule(edit, images=10, epochs=3)
    warm_up, decay = edit.cfg.param_scheduler
    assert (warm_up['end'], decay['begin'], decay['end']) == (2, 2, 15)


def test_the_choice_is_the_same_for_a_seed_and_disjoint(own_coco):
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    parts = []
    for seed in (0, 0, 1):
        use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', seed=seed, val_share=0.3)
        ids = [
            {
                image['id']
                for image in json.loads((own_coco / f'all_{part}.json').read_text())['images']
            }
            for part in ('train', 'val')
        ]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == set(range(10)) and len(ids[1]) == 3
        parts.append(ids[1])
        if len(parts) == 2:
            for part in ('train', 'val'):
                (own_coco / f'all_{part}.json').unlink()
    assert parts[0] == parts[1] != parts[2]


def test_the_choice_that_a_config_relies_on_stays(own_coco):
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    before = (own_coco / 'all_train.json').read_bytes()
    with pytest.raises(OwnDataError, match='holds another choice of images'):
        use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', seed=1)
    assert (own_coco / 'all_train.json').read_bytes() == before


def test_boxes_are_drawn_in_the_colours_of_the_config(own_coco):
    cfg = use_dataset(
        read('retinanet_poolformer-s12_fpn_1x_coco'), own_coco / 'images', own_coco / 'all.json'
    )
    palette = cfg.test_dataloader.dataset.metainfo.palette
    assert len(palette) == 3 and all(type(colour) is tuple for colour in palette)


@pytest.mark.parametrize(
    'name, arch, lr',
    [
        ('mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py', None, 0.004 * 4 / 256),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', None, 0.02 * 4 / 16),
    ],
)
def test_the_learning_rate_is_for_the_batch_that_the_config_names(name, arch, lr, own_coco):
    cfg = use_dataset(
        read(name), own_coco / 'images', own_coco / 'all.json', batch_size=4, arch=arch
    )
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr, rel=1e-2)
    assert cfg.auto_scale_lr.base_batch_size == 4


def test_own_validation_data_are_taken_as_they_are(own_coco):
    content = json.loads((own_coco / 'all.json').read_text())
    content['images'] = content['images'][:4]
    (own_coco / 'val.json').write_text(json.dumps(content))
    cfg = read('mask-rcnn_poolformer-s12_fpn_1x_coco')
    files = own_coco / 'images', own_coco / 'all.json'
    options = dict(val_annotations=own_coco / 'val.json')
    with pytest.raises(OwnDataError, match=r'both name 4 images.*--val-images'):
        use_dataset(cfg, *files, **options)
    new = use_dataset(cfg, *files, val_images=own_coco / 'images', **options)
    assert new.train_dataloader.dataset.ann_file == str(own_coco / 'all.json')
    assert new.val_evaluator.ann_file == str(own_coco / 'val.json')
    assert not (own_coco / 'all_train.json').exists()


def test_both_swaps_in_one_call(own_coco):
    cfg = read('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    options = dict(arch='caformer_s18', checkpoint=None)
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', **options)
    assert new.model.backbone.type == 'MetaFormer' and new.model.roi_head.mask_head.num_classes == 3
    keys = [
        change.key
        for change in own_data_changes(cfg, own_coco / 'images', own_coco / 'all.json', **options)
    ]
    assert 'model.backbone' in keys and 'model.roi_head.bbox_head.num_classes' in keys
    MODELS.build(new.model)


def test_a_small_data_set_gets_enough_steps(own_coco):
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')  # 12 epochs, batches of 2, made for 16
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert new.train_cfg.max_epochs == 250  # 4 steps each
    assert new.param_scheduler[1].milestones == [167, 229]
    assert new.param_scheduler[0].end == 100
    assert new.optim_wrapper.optimizer.lr == pytest.approx(cfg.optim_wrapper.optimizer.lr / 8)
    assert new.auto_scale_lr.base_batch_size == 2
    short = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', epochs=6, batch_size=4)
    assert short.train_cfg.max_epochs == 6 and short.train_dataloader.batch_size == 4


def test_images_that_mmdet_leaves_out_are_no_steps(own_coco):
    content = json.loads((own_coco / 'all.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] < 4]
    (own_coco / 'all.json').write_text(json.dumps(content))
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    files = own_coco / 'images', own_coco / 'all.json'
    options = dict(val_images=own_coco / 'images', val_annotations=own_coco / 'all.json')
    assert use_dataset(cfg, *files, **options).train_cfg.max_epochs == 500  # 2 steps each
    cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt = False
    assert use_dataset(cfg, *files, **options).train_cfg.max_epochs == 200
    cfg.train_dataloader.dataset.filter_cfg.min_size = 65
    with pytest.raises(OwnDataError, match='leaves out all 10 images'):
        use_dataset(cfg, *files, **options)


def test_the_batch_that_a_config_itself_says_goes_before_its_name(own_coco, tmp_path):
    original = find_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    swapped = tmp_path / 'yolox_poolformer-s12_8xb8-300e_coco.py'
    run_tool('swap_backbone', original, '--arch', 's12', '--checkpoint', 'none', '-o', swapped)
    cfg = Config.fromfile(swapped)
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert cfg.auto_scale_lr.base_batch_size == 16
    lr = cfg.optim_wrapper.optimizer.lr * new.train_dataloader.batch_size / 16
    assert new.optim_wrapper.optimizer.lr == pytest.approx(lr)


def test_passes_of_a_repeated_data_set_are_epochs(own_coco):
    cfg = read('mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py')  # 4 epochs, 3 passes each
    files = own_coco / 'images', own_coco / 'all.json'
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg.max_epochs = 1000
    assert use_dataset(cfg, *files).train_cfg.max_epochs == 3000
    assert use_dataset(cfg, *files, epochs=5).train_cfg.max_epochs == 5


def test_own_label_maps_need_images_of_their_own(own_label_maps):
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    options = dict(classes=own_label_maps / 'classes.txt', val_annotations=folders[1])
    with pytest.raises(OwnDataError, match='--val-images'):
        use_dataset(cfg, *folders, **options)
    use_dataset(cfg, *folders, val_images=folders[0], **options)


def test_an_iteration_based_schedule_is_shortened(own_label_maps):
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    options = dict(classes=own_label_maps / 'classes.txt')
    new = use_dataset(cfg, own_label_maps / 'images', own_label_maps / 'labels', **options)
    assert new.train_cfg.max_iters == 1000 and new.train_cfg.val_interval == 83
    assert new.param_scheduler[0].end == 1000


def refuse(change, words, cfg, folder, **options):
    change(folder)
    with pytest.raises(OwnDataError) as error:
        use_dataset(cfg, folder / 'images', folder / 'all.json', **options)
    assert all(word in str(error.value) for word in words), error.value


def rewrite(change):
    def apply(folder):
        content = json.loads((folder / 'all.json').read_text())
        change(content)
        (folder / 'all.json').write_text(json.dumps(content))

    return apply


BAD_COCO = {
    'no file': (lambda folder: (folder / 'all.json').unlink(), ['all.json']),
    'no JSON': (lambda folder: (folder / 'all.json').write_text('{'), ['all.json', 'file of COCO']),
    'no categories': (rewrite(lambda c: c.pop('categories')), ['categories']),
    'a class twice': (
        rewrite(lambda c: c['categories'].append(dict(id=99, name='nut'))),
        ['names used twice', "'nut'"],
    ),
    'one image': (
        rewrite(lambda c: c.update(images=c['images'][:1])),
        ['too few', 'val_annotations'],
    ),
    'no images': (rewrite(lambda c: c.update(images=[])), ['images']),
    'a number': (lambda folder: (folder / 'all.json').write_text('5'), ['no COCO annotations']),
    'a list': (lambda folder: (folder / 'all.json').write_text('[1]'), ['no COCO annotations']),
    'lists without end': (
        lambda folder: (folder / 'all.json').write_text('[' * 200_000),
        ['file of COCO'],
    ),
    'images that are numbers': (rewrite(lambda c: c.update(images=[1, 2])), ['image 0', 'no int']),
    'images by name': (rewrite(lambda c: c.update(images=dict(a=1))), ['needs the lists images']),
    'an image without id': (rewrite(lambda c: c['images'][3].pop('id')), ['image 3', 'integer id']),
    'ids of two kinds': (rewrite(lambda c: c['images'][3].update(id='3')), ['image 3', 'integer']),
    'annotations that are none': (
        rewrite(lambda c: c.update(annotations=None)),
        ['needs the lists', 'annotations'],
    ),
    'annotations that are numbers': (
        rewrite(lambda c: c.update(annotations=[1])),
        ['annotation at position 0'],
    ),
    'a box that is none': (
        rewrite(lambda c: c['annotations'][0].update(bbox=[1, 2, 'x', 4])),
        ['broken box', 'bbox [1, 2'],
    ),
    'long names': (
        rewrite(lambda c: [i.update(file_name=f'{"x" * 5000}{i["id"]}') for i in c['images']]),
        ['none of the 10 images', 'xxx'],
    ),
    'another size than the images have': (
        rewrite(lambda c: [i.update(width=2 * i['width']) for i in c['images']]),
        ['pixels, and', 'the boxes would be wrong'],
    ),
    'a name that would become code': (
        rewrite(lambda c: c['categories'][0].update(name='{{$X:(?s:.{40,}?)}}')),
        ['{{$X:', 'mmengine replaces', 'rename it'],
    ),
    'a name for the terminal': (
        rewrite(lambda c: c['categories'][0].update(name='\x1b]0;owned')),
        ['the name of class 0', r'\x1b]0;owned', 'printable'],
    ),
    'a number without end': (
        rewrite(lambda c: c['annotations'][0].update(area=10**400)),
        ['broken annotation'],
    ),
    'a name with a space behind it': (
        rewrite(lambda c: c['categories'][0].update(name='screw ')),
        ["'screw '", 'remove the spaces'],
    ),
    'categories that are numbers': (
        rewrite(lambda c: c.update(categories=[1])),
        ['broken category'],
    ),
    'no folder': (
        lambda folder: (folder / 'images').rename(folder / 'gone'),
        ['no folder', 'images'],
    ),
}


@pytest.mark.parametrize('case', BAD_COCO)
def test_bad_coco_data_are_refused(case, own_coco):
    refuse(*BAD_COCO[case], read('retinanet_poolformer-s12_fpn_1x_coco'), own_coco)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(val_images='images'), ['val_images', 'val_annotations', 'neither']),
        (dict(val_annotations='nowhere.json'), ['nowhere.json', 'cannot be read', 'No such file']),
        (dict(val_images='others', val_annotations='all.json'), ['none of the', 'others']),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, dict) else '',
)
def test_bad_validation_data_are_refused(options, words, own_coco):
    (own_coco / 'others').mkdir()
    options = {key: own_coco / name for key, name in options.items()}
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    refuse(lambda _: None, words, cfg, own_coco, **options)


def test_categories_in_another_order_are_refused(own_coco):
    content = json.loads((own_coco / 'all.json').read_text())
    content['categories'].reverse()
    (own_coco / 'val.json').write_text(json.dumps(content))
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    refuse(
        lambda _: None,
        ['washer, nut, screw', 'val.json'],
        cfg,
        own_coco,
        val_annotations=own_coco / 'val.json',
    )


@pytest.mark.parametrize(
    'name, word',
    [
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'panoptic'),
        ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py', 'as text'),
        (
            'mmdet::bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py',
            'tracker',
        ),
    ],
)
def test_models_of_other_classes_are_refused(name, word, own_coco):
    refuse(lambda _: None, [word], read(name), own_coco)


def save_zeros(path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)


def drop_one(folder):
    random.Random(0)
    (folder / 'labels' / '3.png').unlink()


def add_label(folder):
    labels = np.full((64, 64), 7, np.uint8)
    Image.fromarray(labels).save(folder / 'labels' / '0.png')


BAD_LABEL_MAPS = {
    'a name that would become code': (
        lambda _: None,
        dict(classes=('sky', 'roof', '{{ fileDirname }}', 'ground')),
        ['{{ fileDirname }}', 'mmengine replaces'],
    ),
    'a name that no list can hold': (
        lambda folder: [
            (folder / kind / f'3.{end}').rename(folder / kind / f'3\n4 .{end}')
            for kind, end in (('images', 'jpg'), ('labels', 'png'))
        ],
        {},
        ['lists of names cannot hold'],
    ),
    'an empty name': (
        lambda folder: (folder / 'classes.txt').write_text('sky\n\nwall\nground\n'),
        {},
        ['the name of class 1 is empty'],
    ),
    'one class': (
        lambda folder: [save_zeros(path) for path in (folder / 'labels').iterdir()],
        dict(classes=('sky',)),
        ['softmax over one class', 'background'],
    ),
    'a map is missing': (drop_one, {}, ['no label map', '3.jpg']),
    'a label beyond the classes': (add_label, {}, ['label 7', '4 classes', '0 to 3']),
    'no classes': (lambda _: None, dict(classes=None), ['text file with one a line']),
    'a text for a list': (lambda _: None, dict(classes='disc'), ["'disc'", "('disc',)"]),
    'two suffixes': (
        lambda folder: (folder / 'images' / '0.jpg').rename(folder / 'images' / '0.png'),
        {},
        ['.jpg, .png', 'one suffix'],
    ),
    'a share of all': (lambda _: None, dict(val_share=1), ['val_share=1']),
    'an ignored class': (lambda _: None, dict(ignore_index=2), ["label of the class 'wall'"]),
    'an ignored label that is none': (lambda _: None, dict(ignore_index=-1), ['0 to 255']),
    'two labels that are no class': (
        lambda _: None,
        dict(ignore_index=99, reduce_zero_label=True),
        ['shifts all others', 'Write 255 for 99'],
    ),
    'a palette of another length': (lambda _: None, dict(palette=[[0, 0, 0]]), ['1 colours']),
}


@pytest.mark.parametrize('case', BAD_LABEL_MAPS)
def test_bad_label_maps_are_refused(case, own_label_maps):
    change, options, words = BAD_LABEL_MAPS[case]
    change(own_label_maps)
    options = dict(dict(classes=own_label_maps / 'classes.txt'), **options)
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    with pytest.raises(OwnDataError) as error:
        use_dataset(cfg, own_label_maps / 'images', own_label_maps / 'labels', **options)
    assert all(word in str(error.value) for word in words), error.value


def test_another_ignored_label_is_ignored_wherever_255_was(own_label_maps):
    """Also where 255 is a default of the toolbox."""
    for path in (own_label_maps / 'labels').iterdir():
        labels = np.array(Image.open(path))
        labels[:8] = 99
        Image.fromarray(labels).save(path)
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    repeated = cfg.train_dataloader.dataset.dataset
    padding = [
        dict(type='RandomRotate', prob=1.0, degree=45.0),
        dict(type='Pad', size=(700, 700)),
        dict(type='Pad', size=(800, 800), pad_val=dict(img=0, seg=255)),
    ]
    repeated.pipeline = [*repeated.pipeline[:2], *padding, repeated.pipeline[-1]]
    losses = ('DiceLoss', 'CrossEntropyLoss', 'OhemCrossEntropy')
    cfg.model.decode_head.loss_decode = [dict(type=loss) for loss in losses]
    folders, options = (own_label_maps / 'images', own_label_maps / 'labels'), dict(ignore_index=99)
    new = use_dataset(cfg, *folders, classes=own_label_maps / 'classes.txt', **options)
    labels = DATASETS.build(new.train_dataloader.dataset)[0]['data_samples'].gt_sem_seg.data
    assert labels.shape[-2:] == (800, 800)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 99}
    model = MODELS.build(new.model)
    assert model.data_preprocessor.seg_pad_val == model.decode_head.ignore_index == 99
    assert model.decode_head.loss_decode[0].ignore_index == 99
    assert model.decode_head.loss_decode[2].ignore_label == 99
    assert METRICS.build(new.val_evaluator).ignore_index == 99


@pytest.mark.parametrize(
    'name, options, switches',
    [
        ('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', dict(epochs=30), dict(switch_epoch=28)),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', dict(epochs=10), dict(num_last_epochs=1)),
    ],
)
def test_stages_of_the_training_follow_its_length(name, options, switches, own_coco):
    new = use_dataset(read(name), own_coco / 'images', own_coco / 'all.json', **options)
    found = dict(flatten(new.custom_hooks))
    for key, value in switches.items():
        assert [v for path, v in found.items() if path.endswith(f'.{key}')] == [value]


def test_the_first_evaluation_follows_the_length(own_label_maps):
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    cfg.train_cfg.val_begin = 20_000
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    new = use_dataset(cfg, *folders, classes=own_label_maps / 'classes.txt')
    assert (new.train_cfg.max_iters, new.train_cfg.val_begin) == (1000, 500)


@pytest.mark.parametrize('as_list', [True, False])
def test_the_least_learning_rate_follows_the_learning_rate(as_list, own_coco):
    cfg = read('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py')
    if not as_list:
        cfg.param_scheduler = cfg.param_scheduler[1]
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', batch_size=8)
    cosine = new.param_scheduler[1] if as_list else new.param_scheduler
    lr = new.optim_wrapper.optimizer.lr
    assert lr == pytest.approx(0.004 * 8 / 256) and cosine.eta_min == pytest.approx(0.05 * lr)


@pytest.mark.parametrize(
    'scheduler, key, old, new',
    [
        (dict(type='OneCycleLR', eta_max=1.0, total_steps=40_000), 'total_steps', 40_000, 1000),
        (dict(type='StepLR', step_size=20_000), 'step_size', 20_000, 500),
        (
            dict(type='CosineRestartLR', periods=[10_000, 30_000], restart_weights=[1, 1]),
            'periods', [10_000, 30_000], [250, 750],
        ),
    ],
)  # fmt: skip
def test_all_lengths_of_a_schedule_follow(scheduler, key, old, new, own_label_maps):
    cfg = read('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    cfg.param_scheduler = [dict(scheduler, by_epoch=False)]
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    adapted = use_dataset(cfg, *folders, classes=own_label_maps / 'classes.txt')
    assert cfg.param_scheduler[0][key] == old and adapted.param_scheduler[0][key] == new


def test_accumulated_gradients_are_one_batch(own_coco):
    cfg = read('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')  # two images, made for 16
    cfg.optim_wrapper.accumulative_counts = 8
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert new.optim_wrapper.optimizer.lr == cfg.optim_wrapper.optimizer.lr


def test_masks_are_checked_where_they_are_trained(own_coco):
    content = json.loads((own_coco / 'all.json').read_text())
    content['annotations'][0]['segmentation'] = [[0, 0, 1e9, 0, 1e9, 1e9]]
    (own_coco / 'all.json').write_text(json.dumps(content))
    cfg = read('mask-rcnn_poolformer-s12_fpn_1x_coco')
    with pytest.raises(OwnDataError, match='broken mask'):
        use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')


def test_a_schedule_in_iterations_of_a_training_in_epochs_is_refused(own_coco):
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    cfg.param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=90_000)]
    with pytest.raises(OwnDataError, match=r'param_scheduler\.0: a PolyLR counts iterations'):
        use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')


def test_label_maps_beside_boxes_are_refused(own_coco):
    cfg = read('mmdet::scnet/scnet_r50_fpn_1x_coco.py')
    with pytest.raises(OwnDataError, match='with_seg'):
        use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')


def test_hooks_watch_a_metric_that_there_is(own_coco):
    cfg = read('mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    cfg.default_hooks.checkpoint.save_best = 'pascal_voc/mAP'
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='pascal_voc/mAP')]
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert new.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    assert new.custom_hooks[0].monitor == 'coco/bbox_mAP'
    cfg.default_hooks.checkpoint.save_best = 'auto'
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json')
    assert new.default_hooks.checkpoint.save_best == 'auto'


def test_the_tool_writes_a_config_that_trains(own_coco, tmp_path, capsys):
    config = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_digits.py'
    out = tmp_path / 'own.py'
    data = ['--images', own_coco / 'images', '--annotations', own_coco / 'all.json']
    run_tool('use_dataset', config, *data, '-o', out)
    printed = capsys.readouterr().out
    assert 'model.roi_head.mask_head.num_classes: 10 → 3 (the classes of your data)' in printed
    assert f'wrote {out}' in printed
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2']
    options += [
        f'{s}_dataloader.{o}'
        for s in ('train', 'val')
        for o in ('num_workers=0', 'persistent_workers=False')
    ]
    run_tool('train', out, '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    metrics = json.loads((tmp_path / 'work' / 'val_metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()
    run_tool('check_dataset', out, '--workers', 0)
    message = tool_error(capsys, 'use_dataset', config, *data, '-o', out)
    assert 'exists' in message
    message = tool_error(capsys, 'use_dataset', config, *data[:3], own_coco / 'gone.json')
    assert message.startswith('error: ') and 'gone.json' in message


@pytest.mark.parametrize(
    ('name', 'train', 'val'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', (64, 64), (64, 64)),
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (96, 96), (96, 96)),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', (160, 160), (96, 96)),
        ('mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py', None, (96, 96)),
    ],
)
def test_all_sizes_of_a_detector_follow_one(name, train, val, own_coco):
    new = use_dataset(read(name), own_coco / 'images', own_coco / 'all.json', image_size=96)
    for split, size in (('train', train), ('val', val)):
        inputs = DATASETS.build(new[f'{split}_dataloader'].dataset)[0]['inputs']
        assert size is None or inputs.shape[-2:] == size


@pytest.mark.parametrize('name', SEGMENTORS)
def test_all_sizes_of_a_segmentor_follow_one(name, own_label_maps):
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    new = use_dataset(read(name), *folders, classes=own_label_maps / 'classes.txt', image_size=96)
    inputs = DATASETS.build(new.train_dataloader.dataset)[0]['inputs']
    assert max(inputs.shape[-2:]) <= max(new.model.data_preprocessor.size) == 96


def test_windows_of_an_evaluation_follow_the_size(own_label_maps):
    cfg = read('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    new = use_dataset(cfg, *folders, classes=own_label_maps / 'classes.txt', image_size=128)
    assert dict(new.model.test_cfg) == dict(mode='slide', crop_size=(128, 128), stride=(96, 96))


@pytest.mark.parametrize(
    ('name', 'size', 'message'),
    [
        ('retinanet_poolformer-s12_fpn_1x_coco', 100, 'image_size=100: give a multiple of 32'),
        ('retinanet_poolformer-s12_fpn_1x_coco', 0, 'image_size=0: give a multiple of 32'),
        ('mmdet::ssd/ssd300_coco.py', 96, 'input_size=300 is made for one size'),
        ('mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', 96, 'is made for one size'),
        ('mmdet::yolact/yolact_r50_1xb8-55e_coco.py', 96, 'is made for one size'),
        ('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py', 96, 'says no size'),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name, size, message, own_coco):
    with pytest.raises(OwnDataError, match=message):
        use_dataset(read(name), own_coco / 'images', own_coco / 'all.json', image_size=size)


def test_factors_of_an_augmented_test_become_sizes(own_label_maps):
    cfg = read('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py')
    factors = [step.scale_factor for step in cfg.tta_pipeline[1].transforms[0]]
    folders = own_label_maps / 'images', own_label_maps / 'labels'
    new = use_dataset(cfg, *folders, classes=own_label_maps / 'classes.txt', image_size=256)
    assert new.test_dataloader.dataset.pipeline[1].scale == (1024, 256)
    sizes = [step['scale'] for step in new.tta_pipeline[1].transforms[0]]
    assert sizes == [tuple(max(1, round(f * side)) * 32 for side in (32, 8)) for f in factors]


@pytest.mark.parametrize(
    ('step', 'expected'),
    [
        (dict(type='RandomAffine', border=(0, 0)), dict(border=(0, 0))),
        (dict(type='ResizeShortestEdge', scale=800, max_size=1333), dict(scale=192, max_size=320)),
    ],
)
def test_only_sides_follow_a_size(step, expected, own_coco):
    cfg = read('retinanet_poolformer-s12_fpn_1x_coco')
    cfg.train_dataloader.dataset.pipeline.append(step)
    new = use_dataset(cfg, own_coco / 'images', own_coco / 'all.json', image_size=320)
    last = new.train_dataloader.dataset.pipeline[-1]
    assert {key: last[key] for key in expected} == expected
