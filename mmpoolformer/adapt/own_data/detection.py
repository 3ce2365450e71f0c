"""Own COCO annotations in a detector's config."""

from __future__ import annotations

import json
from pathlib import Path

from ...datasets.fit import read_categories
from ...utils.config_tree import type_of, walk
from ...utils.errors import join
from ..edit import Edit
from .box_files import to_coco_file
from .errors import OwnDataError
from .splits import Data, Part, choose, class_names, colours, folder, write_part
from .wrapped import REASON, leaves, own_parts


def coco_data(
    images, annotations, classes, palette, with_masks: bool,
    val_images, val_annotations, share: float, seed: int,
) -> Data:  # fmt: skip
    """Find the classes and the two parts of a data set in COCO's format, or bring it into that.

    Raises:
        OwnDataError: A file or folder is missing, or is not what it should be.
    """
    if classes is not None:
        if not Path(annotations).expanduser().is_dir():
            raise OwnDataError(
                'classes are for label maps and for folders of labels: a detector has the '
                f'categories of its COCO file, {annotations}'
            )
        classes = class_names(classes)
    train = _part(images, 'images', annotations, classes, with_masks)
    path = train.annotations
    content = _content(path)
    classes = _classes(path)
    _check_images(train.images, content)
    if val_annotations is not None:
        val_images = val_images if val_images is not None else images
        val = _part(val_images, 'val_images', val_annotations, classes, with_masks)
        found = _classes(val.annotations)
        if found != classes:
            raise OwnDataError(
                f'{val.annotations} has the categories {join(found)}, and {path} has '
                f'{join(classes)}: mmdet would evaluate one class as another. Write both with the '
                'same list of categories'
            )
        _check_images(val.images, _content(val.annotations))
        count = len(content['images'])
    else:
        train, val, count = _split(train, content, share, seed)
    return Data(train, val, classes, colours(len(classes), palette), count)


def _part(images, option: str, annotations, classes, with_masks: bool) -> Part:
    """Images and their COCO file, which is written first where a folder of labels is given."""
    path = Path(annotations).expanduser().resolve()
    if not path.is_dir():
        return Part(folder(images, option), path)
    if with_masks:
        raise OwnDataError(
            f'{path}: of label files the boxes are taken, and this config trains masks. Take a '
            'detector without masks, such as retinanet_poolformer-s12_fpn_1x_coco, or a COCO file '
            'with segmentation'
        )
    found = folder(images, option)
    path, note = to_coco_file(path, found, classes)
    return Part(found, path, note=note)


def _content(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OwnDataError(
            f'annotations: {path} cannot be read as a file of COCO: {error}'
        ) from error
    missing = [key for key in ('images', 'annotations', 'categories') if key not in content]
    if missing or not content['images']:
        raise OwnDataError(
            f'{path} has no {" and no ".join(missing) or "images"}: it needs the lists images, '
            'annotations and categories of COCO'
        )
    return content


def _check_images(images: Path, content: dict) -> None:
    names = [str(image.get('file_name')) for image in content['images']]
    if not any((images / name).is_file() for name in names):
        raise OwnDataError(
            f'none of the {len(names)} images of the annotations is in {images}, such as {names[0]}'
        )


def _classes(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(str(category['name']) for category in read_categories(path))
    except OSError as error:
        raise OwnDataError(f'annotations: {path} cannot be read: {error}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise OwnDataError(f'{path} has no categories as COCO writes them: {error}') from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        what = f'the category {twice[0]!r} twice' if twice else 'no category'
        raise OwnDataError(f'{path} has {what}: give each class one category')
    return names


def _split(whole: Part, content: dict, share: float, seed: int) -> tuple[Part, Part, int]:
    """Write the two parts of an annotation file beside it."""
    chosen = choose([image['id'] for image in content['images']], share, seed)
    parts = []
    for name, belongs in (('train', lambda i: i not in chosen), ('val', lambda i: i in chosen)):
        part = dict(
            content,
            images=[image for image in content['images'] if belongs(image['id'])],
            annotations=[a for a in content['annotations'] if belongs(a.get('image_id'))],
        )
        path = whole.annotations.with_name(f'{whole.annotations.stem}_{name}.json')
        write_part(path, json.dumps(part))
        parts.append(whole._replace(annotations=path))
    return (*parts, len(content['images']) - len(chosen))


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
