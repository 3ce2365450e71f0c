"""Own COCO annotations in a detector's config."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...datasets.coco import NO_MASK, check_content, count_trained, read_coco
from ...datasets.images import decoded_shape
from ...datasets.problems import ERROR
from ...utils.config_tree import type_of, walk
from ...utils.errors import first_line, some
from ..edit import Edit
from .box_files import to_coco_file
from .errors import OwnDataError
from .splits import (
    LOOKED_INTO,
    Data,
    Part,
    checked_names,
    choose,
    class_names,
    colours,
    folder,
    write_part,
)
from .wrapped import REASON, leaves, own_parts, watch_metric

WITHOUT_MASKS = 'a detector without masks, such as retinanet_poolformer-s12_fpn_1x_coco'


def coco_data(
    images, annotations, classes, palette, with_masks: bool, filter_cfg: dict | None,
    val_images, val_annotations, share: float, seed: int,
) -> Data:  # fmt: skip
    """Find the classes and the two parts of a data set in COCO's format, or bring it into that.

    Raises:
        OwnDataError: A file or folder is missing, or is not what it should be.
    """
    if classes is not None:
        if not os.path.isdir(os.path.expanduser(annotations)):
            raise OwnDataError(
                'classes are for label maps and for folders of labels: a detector has the '
                f'categories of its COCO file, {annotations}'
            )
        classes = class_names(classes)
    train = _part(images, 'images', annotations, classes, with_masks)
    content, classes = _content(train, with_masks)
    if val_annotations is not None:
        place = val_images if val_images is not None else images
        val = _part(place, 'val_images', val_annotations, classes, with_masks)
        val_content, found = _content(val, with_masks)
        if found != classes:
            raise OwnDataError(
                f'{val.annotations} has the categories {some(found)}, and {train.annotations} has '
                f'{some(classes)}: mmdet would evaluate one class as another. Write both with the '
                'same list of categories'
            )
        if val_images is None:
            _check_apart(train, content, val, val_content)
    else:
        train, val, content = _split(train, content, share, seed)
    boxed = {annotation['image_id'] for annotation in content['annotations']}
    count = count_trained(content['images'], boxed, filter_cfg)
    if not count:
        raise OwnDataError(
            f'filter_cfg={filter_cfg} leaves out all {len(content["images"])} images of '
            f'{train.annotations}: change it in train_dataloader.dataset'
        )
    return Data(train, val, classes, colours(len(classes), palette), count)


def _check_apart(train: Part, content: dict, val: Part, val_content: dict) -> None:
    """Files of one folder that name the same images are mostly those of two folders."""
    names, others = ({image['file_name'] for image in c['images']} for c in (content, val_content))
    both = sorted(names & others)
    if both:
        raise OwnDataError(
            f'{val.annotations} and {train.annotations} both name {len(both)} images, such as '
            f'{both[0]!a}, and without val_images (--val-images) all are read from {train.images}: '
            'give the folder of each'
        )


def _part(images, option: str, annotations, classes, with_masks: bool) -> Part:
    """Images and their COCO file, which is written first where a folder of labels is given."""
    path = Path(os.path.expanduser(annotations)).resolve()
    if not os.path.isdir(path):
        return Part(folder(images, option), path)
    if with_masks:
        raise OwnDataError(
            f'{path}: of label files the boxes are taken, and this config trains masks. Take '
            f'{WITHOUT_MASKS}, or a COCO file with segmentation'
        )
    found = folder(images, option)
    path, note = to_coco_file(path, found, classes)
    return Part(found, path, note=note)


def _content(part: Part, with_masks: bool) -> tuple[dict, tuple[str, ...]]:
    """What a COCO file holds, and its classes in its order."""
    path = part.annotations
    try:
        content = read_coco(path)
    except (OSError, ValueError, RecursionError) as error:
        raise OwnDataError(
            f'annotations: {path} cannot be read as a file of COCO: {first_line(error)}'
        ) from error
    found, images = check_content(content, str(path), part.images, None, with_masks)
    errors = [problem for problem in found if problem.level == ERROR]
    if errors:
        _, kind, where, detail = map(first_line, errors[0])
        more = f' ({len(errors)} errors in all)' if len(errors) > 1 else ''
        remedy = (
            f'Take {WITHOUT_MASKS}, or add segmentation'
            if kind == NO_MASK
            else 'It needs the lists images, annotations and categories as COCO has them'
        )
        raise OwnDataError(f'annotations: {where}: {kind}: {detail}{more}. {remedy}')
    names = checked_names([category['name'] for category in content['categories']], path)
    changed = [c['name'] for c, name in zip(content['categories'], names) if c['name'] != name]
    if changed:  # mmdet looks categories up by their whole name
        raise OwnDataError(f'{path} has the category {changed[0]!a}: remove the spaces around it')
    if not any(os.path.isfile(image) for image, _ in images):
        raise OwnDataError(
            f'none of the {len(images)} images of the annotations is in {part.images}, such as '
            f'{first_line(content["images"][0]["file_name"])}'
        )
    step = max(1, len(images) // LOOKED_INTO)
    for image, size in images[::step]:
        if os.path.isfile(image) and decoded_shape(image) != size[::-1]:
            raise OwnDataError(
                f'{image} has {"×".join(map(str, decoded_shape(image)[::-1]))} pixels, and {path} '
                f'is for {size[0]}×{size[1]}: the boxes would be wrong'
            )
    return content, names


def _split(whole: Part, content: dict, share: float, seed: int) -> tuple[Part, Part, dict]:
    """Write the two parts of an annotation file beside it, and return what is trained on."""
    chosen = choose([image['id'] for image in content['images']], share, seed)
    parts, contents = [], []
    for name, belongs in (('train', lambda i: i not in chosen), ('val', lambda i: i in chosen)):
        part = dict(
            content,
            images=[image for image in content['images'] if belongs(image['id'])],
            annotations=[a for a in content['annotations'] if belongs(a.get('image_id'))],
        )
        path = whole.annotations.with_name(f'{whole.annotations.stem}_{name}.json')
        write_part(path, json.dumps(part))
        contents.append(part)
        parts.append(whole._replace(annotations=path))
    return (*parts, contents[0])


def trains_masks(edit: Edit) -> bool:
    """Whether a config loads the masks of its objects."""
    pipelines = (step for _, leaf in leaves(edit, 'train') for _, step in walk(leaf))
    return any(step.get('with_mask') for step in pipelines)


def put_coco_data(edit: Edit, data: Data) -> None:
    """Let every data set and evaluator of a config read own COCO data."""
    kinds = {type_of(node) for _, node in leaves(edit, 'train')}
    if any('Panoptic' in kind for kind in kinds):
        raise OwnDataError(
            f'{", ".join(sorted(kinds))} reads panoptic annotations: start from an instance '
            'segmentation config, such as mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
        )
    steps = [step for _, leaf in leaves(edit, 'train') for _, step in walk(leaf)]
    if any(step.get('with_seg') for step in steps):
        raise OwnDataError(
            'it trains on label maps beside the boxes (with_seg), which a COCO file has not: start '
            'from mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
        )
    metainfo = dict(classes=data.classes, palette=data.palette)
    for part, path, old in own_parts(edit, data):
        kept = {k: v for k, v in old.items() if k in ('pipeline', 'filter_cfg', 'test_mode')}
        new = dict(
            kept,
            type='CocoDataset',
            metainfo=metainfo,
            data_root='',
            ann_file=str(part.annotations),
            data_prefix=dict(img=f'{part.images}/'),
        )
        edit.set(path, new, f'{REASON}, {part.note}' if part.note else REASON)
    metric = ['bbox', 'segm'] if trains_masks(edit) else 'bbox'
    for split in ('val', 'test'):
        if edit.cfg.get(f'{split}_dataloader'):
            old = edit.cfg.get(f'{split}_evaluator')
            first = old[0] if isinstance(old, (list, tuple)) and old else old or {}
            kept = first.get('metric', metric) if type_of(first) == 'CocoMetric' else metric
            new = dict(type='CocoMetric', ann_file=str(data.val.annotations), metric=kept)
            edit.set((f'{split}_evaluator',), new, REASON)
    watch_metric(edit, 'coco/', f'coco/{"bbox" if "bbox" in kept else kept[0]}_mAP')
