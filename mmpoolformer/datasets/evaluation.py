"""Is a model scored on the images that it is shown? Data sets and the files that metrics read.

mmdet's metrics look up the true boxes by the ids of images, whatever images have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..archs import is_number
from ..utils.config_tree import type_of, walk
from .problems import ERROR, WARNING, Problem
from .readers import annotation_file, is_leaf

JOINED = 'MultiDatasetsEvaluator'  # has a metric for each data set
SAMPLERS = ('ClassAwareSampler', 'GroupMultiSourceSampler', 'InfiniteSampler', 'MultiSourceSampler')
REPEATING = ('RepeatDataset', 'ClassBalancedDataset')
# What must not be in a pipeline of evaluation or prediction, and what it does, by toolbox.
AT_RANDOM = 'changes images at random'
LEFT_BEHIND = 'moves objects, and the true boxes stay'
MISPLACED = {
    'mmdet': dict.fromkeys(
        (
            'AutoAugment', 'CachedMixUp', 'CachedMosaic', 'CenterCrop', 'CopyPaste', 'Expand',
            'GeomTransform', 'MinIoURandomCrop', 'MixUp', 'Mosaic', 'RandAugment', 'RandomAffine',
            'RandomCenterCropPad', 'RandomCrop', 'RandomFlip', 'RandomShift', 'Rotate', 'ShearX',
            'ShearY', 'TranslateX', 'TranslateY',
        ),
        LEFT_BEHIND,
    ) | dict.fromkeys(
        ('CutOut', 'PhotoMetricDistortion', 'RandomErasing', 'YOLOXHSVRandomAug'), AT_RANDOM
    ),
    'mmseg': dict.fromkeys(
        (
            'PhotoMetricDistortion', 'RandomCrop', 'RandomCutOut', 'RandomMosaic', 'RandomRotFlip',
            'RandomRotate',
        ),
        AT_RANDOM,
    ) | dict(
        Pad='pads an image, and mmseg stretches its label map: data_preprocessor pads rightly',
        RandomFlip='turns an image, which mmseg turns back, and leaves the labels turned',
    ),
}  # fmt: skip
BY_SAMPLE = ('VOCMetric', 'OpenImagesMetric')  # read the true boxes from what the pipeline gives
REMEDY = 'Give the metric the ann_file of its data set'


class Image(NamedTuple):
    """What an annotation file says about an image.

    Attributes:
        name: Without folders.
        size: Width and height in pixels.
        boxes: Name of the category, x, y, width and height of each object.
    """

    name: str
    size: tuple[int, int]
    boxes: list[tuple]


def check_evaluation(cfg: Config) -> Iterator[Problem]:
    """Compare the images of data sets with those of the files that their metrics read.

    Args:
        cfg: A complete config.

    Yields:
        Errors, and a warning for images that are left out before they are predicted.
    """
    for split in ('val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        leaves = [
            node
            for _, node in walk(loader.get('dataset'))
            if is_leaf(node) and node.get('ann_file')
        ]
        evaluator = cfg.get(f'{split}_evaluator')
        if evaluator:
            yield from _check_loader(loader, f'{split}_dataloader', cfg.get('default_scope'))
        metrics = list(walk(evaluator, (f'{split}_evaluator',)))
        if any(type_of(node) in BY_SAMPLE for _, node in metrics):
            yield from _check_order(leaves, split)
        if len(leaves) > 1 and any(_takes_images_by_id(node) for _, node in metrics):
            yield from _check_joined([annotation_file(node) for node in leaves], split)
        metrics = [(path, node) for path, node in metrics if isinstance(node.get('ann_file'), str)]
        if not leaves or not metrics:
            continue
        files = [annotation_file(node) for node in leaves]
        for path, node in metrics:
            where = '.'.join(map(str, (*path, 'ann_file')))
            one_each = type_of(evaluator) == JOINED
            yield from _check_metric(Path(node['ann_file']), files, where, one_each)
        if any(node.get('indices') is not None for node in leaves):
            detail = (
                'indices takes a part of the images, and the metric has all of them: those that '
                'are left out would count as missed. Write their annotations into a file of their '
                'own, for both'
            )
            yield Problem(ERROR, 'images that are not evaluated', f'{split}_dataloader', detail)
        if any(node.get('filter_cfg') and not node.get('test_mode') for node in leaves):
            detail = (
                'filter_cfg leaves images out that the metric has: they are not predicted, and '
                'their objects count as missed. Set test_mode=True'
            )
            yield Problem(WARNING, 'images that are not evaluated', f'{split}_dataloader', detail)


def _check_loader(loader: dict, where: str, scope: str | None) -> Iterator[Problem]:
    """Find what shows a model other images than those of the data set, each once as it is."""
    if loader.get('drop_last') or (loader.get('batch_sampler') or {}).get('drop_last'):
        detail = 'drop_last leaves out the images of the last batch: set drop_last=False'
        yield Problem(ERROR, 'images that are not evaluated', where, detail)
    sampler = type_of(loader.get('sampler') or {})
    if sampler in SAMPLERS:
        detail = f'{sampler} takes images more or less often than once: take DefaultSampler'
        yield Problem(ERROR, 'images that are not evaluated once', f'{where}.sampler', detail)
    for at, node in walk(loader.get('dataset'), (where, 'dataset')):
        if type_of(node) in REPEATING:
            detail = f'{type_of(node)} shows images several times: take the data set inside of it'
            here = '.'.join(map(str, at))
            yield Problem(ERROR, 'images that are not evaluated once', here, detail)
    yield from check_pipelines(loader.get('dataset'), (where, 'dataset'), scope)


def check_pipelines(dataset: Any, path: tuple, scope: str | None) -> Iterator[Problem]:
    """Find transforms that must not be where a model is evaluated or predicts.

    Args:
        dataset: Config of a data set, wrapped or not.
        path: Where it is.
        scope: Its toolbox.
    """
    nodes, misplaced = list(walk(dataset, path)), MISPLACED.get(scope, {})
    merged = [at for at, node in nodes if type_of(node) == 'TestTimeAug']  # which turns all back
    for at, node in nodes:
        kind, is_off = type_of(node), node.get('prob') == 0 or node.get('test_mode')
        if kind in misplaced and not is_off and not any(at[: len(m)] == m for m in merged):
            detail = f'{kind} {misplaced[kind]}: take it out of this pipeline'
            yield Problem(ERROR, 'images that are changed', '.'.join(map(str, at)), detail)


def _check_order(leaves: list[dict], split: str) -> Iterator[Problem]:
    """Find true boxes that are resized with the image, and compared with those of the file."""
    for leaf in leaves:
        kinds = [type_of(step) for step in leaf.get('pipeline') or ()]
        start = kinds.index('LoadAnnotations') if 'LoadAnnotations' in kinds else len(kinds)
        if 'Resize' in kinds[start:]:
            detail = 'LoadAnnotations stands before Resize, which resizes the true boxes: swap them'
            yield Problem(ERROR, 'boxes of another size', f'{split}_dataloader', detail)


def _takes_images_by_id(metric: dict) -> bool:
    return type_of(metric) == 'CocoMetric' and not metric.get('ann_file')


def _check_joined(files: list[Path], split: str) -> Iterator[Problem]:
    """Find ids that two joined data sets give to images of theirs."""
    seen: set = set()
    for file in files:
        numbers = set(_images(file) or ())
        both = numbers & seen
        if both:
            detail = (
                f'{len(both)} images of {file} have ids of others, such as {min(both)}, and the '
                f'metric would take them for the same. Give each data set a metric ({JOINED}), or '
                'ids of its own'
            )
            yield Problem(ERROR, 'images of one id', f'{split}_evaluator', detail)
            return
        seen |= numbers


def _check_metric(file: Path, files: list[Path], where: str, one_each: bool) -> Iterator[Problem]:
    """Compare a metric's file with those of the data sets, one of them or all."""
    are_same = [file.resolve() == other.resolve() for other in files]
    if all(are_same) or (one_each and any(are_same)):
        return
    truth, shown = _images(file), [_images(other) for other in files]
    if truth is None or None in shown:
        return  # other formats; what is wrong with a file itself is said elsewhere
    differences = [_difference(truth, images) for images in shown]
    if one_each and None in differences:
        return
    for other, difference in zip(files, differences):
        if difference is not None:
            detail = (
                f'{difference} in {other}, which images are shown from, than in {file}, which the '
                f'metric takes the true boxes from. {REMEDY}'
            )
            yield Problem(ERROR, 'another file is scored', where, detail)
            return
    missed = [image.name for number, image in truth.items() if not any(number in s for s in shown)]
    if missed:
        detail = (
            f'{len(missed)} of {len(truth)} images of {file}, such as {missed[0]!a}, are in no '
            f'data set: their objects would count as missed. {REMEDY}'
        )
        yield Problem(ERROR, 'images that are never shown are scored', where, detail)


def _difference(truth: dict[Any, Image], shown: dict[Any, Image]) -> str | None:
    """What is another thing in two files, of the images that are shown."""
    has_boxes = any(image.boxes for image in shown.values())  # else a list of images alone
    for number, image in shown.items():
        other = truth.get(number)
        if other is None:
            return f'there are other images, such as {number!a} ({image.name!a}),'
        if (image.name, image.size) != (other.name, other.size):
            return f'image {number!a} is another one, {image.name!a} and not {other.name!a},'
        if has_boxes and sorted(image.boxes) != sorted(other.boxes):
            return f'image {number!a} ({image.name!a}) has other boxes'
    return None


def _images(path: Path) -> dict[Any, Image] | None:
    """The images of a file of COCO's form by their ids; ``None`` for a file of another form."""
    images = {}
    try:
        content = json.loads(path.read_bytes())
        names = {c['id']: c['name'] for c in content.get('categories') or ()}
        for image in content['images']:
            name = str(image.get('file_name') or image['coco_url']).rsplit('/', 1)[-1]
            size = image.get('width'), image.get('height')
            images[image['id']] = Image(name, size, [])
        for annotation in content.get('annotations') or ():
            if 'bbox' in annotation and annotation.get('image_id') in images:  # panoptic have none
                box = annotation['bbox']
                if not all(map(is_number, box)):
                    return None
                name = str(names.get(annotation['category_id']))
                images[annotation['image_id']].boxes.append((name, *box))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return images
