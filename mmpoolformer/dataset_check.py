"""Find what is wrong with a data set before a long run does.

What would stop training, or train on wrong numbers, is an error. What mmdet and mmseg handle
by a rule of theirs (they skip, clip or convert it) is a warning that says so.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import import_modules_from_strings
from PIL import ExifTags, Image

from .checks import LaunchError
from .config_tree import walk

ERROR, WARNING = 'error', 'warning'
MANY_PIXELS = 100_000_000
SPLITS = ('train', 'val', 'test')
SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}
CONVERTED = {
    'I;16': '16 bits a channel, of which 8 are used',
    'I;16B': '16 bits a channel, of which 8 are used',
    'RGBA': 'an alpha channel, which is dropped',
    'LA': 'an alpha channel, which is dropped',
    'CMYK': 'CMYK, which is converted to RGB without a colour profile',
}


class Problem(NamedTuple):
    """Something wrong with one file or one annotation.

    Attributes:
        level: ``'error'`` or ``'warning'``.
        kind: What all problems of its kind are called.
        where: The file, and the annotation in it.
        detail: What was found.
    """

    level: str
    kind: str
    where: str
    detail: str


def check_config(
    cfg: Config, workers: int = 0, progress: Callable[[str, int, Iterator], Iterator] | None = None
) -> Iterator[Problem]:
    """Check every data set that a config trains and tests on.

    Args:
        cfg: A complete config of mmdet or mmseg.
        workers: Processes to read images with; 0 reads them in this one.
        progress: Called with a title, a count and the iterator over results; yields from it.

    Yields:
        The problems, data set by data set.

    Raises:
        LaunchError: The config names no data set.
    """
    if not cfg.get('default_scope'):
        raise LaunchError('the config has no default_scope: mmdet or mmseg')
    init_default_scope(cfg.default_scope)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    progress = progress or (lambda title, count, results: results)
    seen = set()
    for split in SPLITS:
        for _, node in walk((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if 'pipeline' not in node or 'dataset' in node or 'datasets' in node:
                continue
            key = json.dumps([node.get(k) for k in ('data_root', 'ann_file', 'data_prefix')])
            if key in seen:
                continue
            seen.add(key)
            title = f'{split}: {node.get("ann_file") or node.get("data_root")}'
            yield from check_dataset(node, title, workers, progress)
    if not seen:
        raise LaunchError('the config names no data set: it has no train, val or test dataloader')


def check_dataset(node: dict, title: str, workers: int, progress: Callable) -> Iterator[Problem]:
    """Check one data set: COCO annotations, label maps, or anything that its class can load."""
    root = node.get('data_root') or ''
    prefix = dict(node.get('data_prefix') or {})
    if _is_coco(node):
        path = Path(root, node['ann_file'])
        problems, images = check_coco(
            path,
            Path(root, prefix.get('img', prefix.get('img_path', ''))),
            classes=_classes(node),
            with_masks=_loads_masks(node),
        )
        yield from problems
        jobs = [partial(check_image, name, size) for name, size in images]
    else:
        try:
            dataset = DATASETS.build(dict(node, lazy_init=False))
        except Exception as error:  # of whatever kind, this data set cannot be trained on
            yield Problem(ERROR, 'data set cannot be built', title, _one_line(error))
            return
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if not infos:
            yield Problem(ERROR, 'empty data set', title, 'no image was found')
        if infos and infos[0].get('seg_map_path') and 'reduce_zero_label' in infos[0]:
            count = len(dataset.metainfo['classes'])
            jobs = [partial(check_pair, info, count) for info in infos]
        else:
            jobs = [partial(check_sample, dataset, i) for i in range(len(infos))]
    with ProcessPoolExecutor(workers) if workers else nullcontext() as pool:
        results = map(_call, jobs) if pool is None else pool.map(_call, jobs, chunksize=16)
        for problems in progress(title, len(jobs), results):
            yield from problems


# Images ----------------------------------------------------------------------------------


def check_image(path: str | Path, size: tuple[int, int] | None = None) -> list[Problem]:
    """Check that an image decodes completely, and to the size that annotations are for.

    Args:
        path: The file.
        size: Width and height that it should have after EXIF rotation, which mmcv applies.
    """
    path = Path(path)
    where = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        return [Problem(ERROR, 'image cannot be read', where, error.strerror or str(error))]
    if not content:
        return [Problem(ERROR, 'empty image file', where, '0 bytes')]
    try:
        form, mode, rotated = _decode_fully(content)
    except Exception as error:  # PIL has many ways to refuse a file
        return [Problem(ERROR, 'damaged image', where, _one_line(error))]
    try:
        pixels = mmcv.imfrombytes(content, flag='color')
    except Exception as error:
        return [Problem(ERROR, 'damaged image', where, _one_line(error))]
    if pixels is None:
        return [Problem(ERROR, 'damaged image', where, f'OpenCV does not decode this {form} file')]
    found = []
    height, width = pixels.shape[:2]
    if size is not None and (width, height) != tuple(size):
        why = ', after the rotation that its EXIF entry asks for' if rotated else ''
        detail = f'{width}×{height}{why}; its annotations are for {size[0]}×{size[1]}'
        found.append(Problem(ERROR, 'image of another size', where, detail))
    elif rotated:
        found.append(Problem(WARNING, 'EXIF rotation', where, 'it is applied'))
    if form in SUFFIXES and path.suffix.lower() not in SUFFIXES[form]:
        detail = f'a {form} file; it is decoded by its content'
        found.append(Problem(WARNING, 'wrong extension', where, detail))
    if mode in CONVERTED:
        found.append(Problem(WARNING, 'converted image', where, CONVERTED[mode]))
    if width * height > MANY_PIXELS:
        detail = f'{width}×{height}: {3 * width * height / 1e9:.1f} GB when decoded'
        found.append(Problem(WARNING, 'very large image', where, detail))
    if min(width, height) < 2:
        detail = f'{width}×{height}: resized to a strip or a single colour'
        found.append(Problem(WARNING, 'very small image', where, detail))
    return found


def _decode_fully(content: bytes) -> tuple[str, str, bool]:
    """Format, mode and whether EXIF rotates it. OpenCV fills what is missing with grey."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(content)) as image:
        rotation = image.getexif().get(ExifTags.Base.Orientation, 1)
        image.load()
        return image.format, image.mode, rotation not in (0, 1)


def _decoded_shape(content: bytes) -> tuple[int, int]:
    """Height and width after EXIF rotation, from the header alone."""
    with Image.open(io.BytesIO(content)) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


# COCO ------------------------------------------------------------------------------------


def check_coco(
    path: Path, image_folder: Path, classes: tuple[str, ...] | None, with_masks: bool
) -> tuple[list[Problem], list[tuple[Path, tuple[int, int]]]]:
    """Check a COCO annotation file.

    Args:
        path: The JSON file.
        image_folder: Where its ``file_name`` entries lead from.
        classes: Category names that the config trains.
        with_masks: Whether the config loads masks.

    Returns:
        The problems, and the images that it lists with width and height.
    """
    where = str(path)
    try:
        coco = json.loads(path.read_bytes())
    except OSError as error:
        return [Problem(ERROR, 'annotations cannot be read', where, error.strerror or '')], []
    except (ValueError, RecursionError) as error:
        return [Problem(ERROR, 'broken JSON', where, _one_line(error))], []
    parts = ('images', 'annotations', 'categories')
    if not isinstance(coco, dict) or not all(isinstance(coco.get(k), list) for k in parts):
        detail = f'it needs the lists {", ".join(parts)}'
        return [Problem(ERROR, 'no COCO annotations', where, detail)], []
    problems, categories = _check_categories(coco['categories'], classes, where)
    more, images = _check_images(coco['images'], where)
    problems += more
    usable = 0
    for position, annotation in enumerate(coco['annotations']):
        more, is_used = _check_annotation(annotation, position, images, categories, with_masks)
        problems += [p._replace(where=f'{where}, {p.where}') for p in more]
        usable += is_used
    problems += _duplicates(coco['annotations'], 'annotation', where)
    if not usable:
        problems.append(Problem(ERROR, 'no usable annotation', where, 'training sees no object'))
    boxed = {a.get('image_id') for a in coco['annotations'] if _is_hashable_id(a)}
    empty = [image for image in images if image not in boxed]
    if empty:
        detail = f'{len(empty)} of {len(images)}; left out where filter_empty_gt is set'
        problems.append(Problem(WARNING, 'images without annotations', where, detail))
    files = [
        (image_folder / image['file_name'], (image['width'], image['height']))
        for image in images.values()
    ]
    return problems, files


def _check_categories(categories: list, classes, where: str) -> tuple[list[Problem], set]:
    problems, names = [], {}
    for category in categories:
        fields = category if isinstance(category, dict) else {}
        if _is_id(fields.get('id')) and isinstance(fields.get('name'), str):
            names[fields['id']] = fields['name']
        else:
            problems.append(Problem(ERROR, 'broken category', where, repr(category)[:80]))
    problems += _duplicates(categories, 'category', where)
    missing = [name for name in classes or () if name not in names.values()]
    if missing:
        detail = f'not among its categories: {", ".join(missing[:5])}'
        problems.append(Problem(ERROR, 'classes of the config', where, detail))
    used = {i for i, name in names.items() if classes is None or name in classes}
    return problems, used


def _check_images(entries: list, where: str) -> tuple[list[Problem], dict]:
    problems, images = [], {}
    for position, image in enumerate(entries):
        here = f'{where}, image {position}'
        fields = image if isinstance(image, dict) else {}
        sides = [fields.get('width'), fields.get('height')]
        name = fields.get('file_name')
        if not _is_id(fields.get('id')):
            problems.append(Problem(ERROR, 'broken image entry', here, 'no integer id'))
        elif not isinstance(name, str) or not name or '\0' in name:
            problems.append(Problem(ERROR, 'broken image entry', here, f'file_name {name!r}'))
        elif os.path.isabs(name) or '..' in Path(name).parts:
            detail = f'file_name {name!r} leads out of the image folder'
            problems.append(Problem(ERROR, 'broken image entry', here, detail))
        elif not all(_is_id(side) and side > 0 for side in sides):
            detail = f'width and height {sides}'
            problems.append(Problem(ERROR, 'broken image entry', here, detail))
        else:
            images[fields['id']] = fields
    return problems + _duplicates(entries, 'image', where), images


def _check_annotation(
    annotation: Any, position: int, images: dict, categories: set, with_masks: bool
) -> tuple[list[Problem], bool]:
    """The problems of an annotation, and whether training uses it."""
    fields = annotation if isinstance(annotation, dict) else {}
    here = f'annotation {fields.get("id", f"at position {position}")}'
    for key in ('id', 'image_id', 'category_id'):
        if not _is_id(fields.get(key)):
            return [Problem(ERROR, 'broken annotation', here, f'no integer {key}')], False
    image = images.get(fields['image_id'])
    if image is None:
        detail = f'image_id {fields["image_id"]}'
        return [Problem(WARNING, 'annotation of an unknown image, skipped', here, detail)], False
    box = fields.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return [Problem(ERROR, 'broken box', here, f'bbox {box!r}'[:80])], False
    if not _is_finite(fields.get('area')):
        return [Problem(ERROR, 'broken annotation', here, f'area {fields.get("area")!r}')], False
    if not isinstance(fields.get('iscrowd', 0), (int, bool)):
        return [Problem(ERROR, 'broken annotation', here, f'iscrowd {fields["iscrowd"]!r}')], False
    if fields['category_id'] not in categories:
        detail = f'category_id {fields["category_id"]}'
        return [Problem(WARNING, 'category not trained, skipped', here, detail)], False
    if fields.get('ignore'):
        return [], False
    x, y, width, height = box
    inside = [
        max(0, min(x + width, image['width']) - max(x, 0)),
        max(0, min(y + height, image['height']) - max(y, 0)),
    ]
    if width < 1 or height < 1 or fields['area'] <= 0:
        detail = f'bbox {box}, area {fields["area"]}'
        return [Problem(WARNING, 'box without area, skipped', here, detail)], False
    if min(inside) == 0:
        return [Problem(WARNING, 'box outside of the image, skipped', here, f'bbox {box}')], False
    problems = []
    if inside[0] < width - 1 or inside[1] < height - 1:
        detail = f'bbox {box} in {image["width"]}×{image["height"]}'
        problems.append(Problem(WARNING, 'box over the edge of the image', here, detail))
    if with_masks:
        problems += _check_mask(fields.get('segmentation'), image, here)
    return problems, not any(problem.level == ERROR for problem in problems)


def _check_mask(mask: Any, image: dict, here: str) -> list[Problem]:
    if not mask:
        return [Problem(ERROR, 'no mask', here, 'the config loads masks')]
    if isinstance(mask, list):
        if not all(isinstance(p, list) and all(map(_is_finite, p)) for p in mask):
            return [Problem(ERROR, 'broken mask', here, 'a polygon is a list of numbers')]
        if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
            detail = 'no polygon has three points'
            return [Problem(WARNING, 'mask without area, ignored', here, detail)]
        if any(abs(number) > 1e6 for polygon in mask for number in polygon):
            return [Problem(ERROR, 'broken mask', here, 'coordinates over a million')]
        return []
    size, counts = (mask.get(k) if isinstance(mask, dict) else None for k in ('size', 'counts'))
    if size != [image['height'], image['width']]:
        detail = f'size {size}, image {[image["height"], image["width"]]} (height, width)'
        return [Problem(ERROR, 'mask of another size', here, detail)]
    if isinstance(counts, list):
        good = all(_is_id(count) and count >= 0 for count in counts)
        if not good or sum(counts) != size[0] * size[1]:
            return [Problem(ERROR, 'broken mask', here, 'its runs do not add up to the image')]
        return []
    if not isinstance(counts, str):
        return [Problem(ERROR, 'broken mask', here, 'no counts')]
    runs = _decode_runs(counts)
    if runs is None or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        return [Problem(ERROR, 'broken mask', here, 'its runs do not add up to the image')]
    return []


def _decode_runs(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed notation: six bits a character, 5 of them digits."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs if shift == 0 else None


def _duplicates(entries: list, what: str, where: str) -> list[Problem]:
    counts = Counter(e['id'] for e in entries if isinstance(e, dict) and _is_id(e.get('id')))
    twice = [i for i, count in counts.items() if count > 1]
    if not twice:
        return []
    return [Problem(ERROR, f'{what} ids used twice', where, ', '.join(map(str, twice[:5])))]


# Label maps and other data sets ----------------------------------------------------------


def check_pair(info: dict, num_classes: int) -> list[Problem]:
    """Check an image and the label map that belongs to it, as mmseg lists them."""
    path = info['seg_map_path']
    problems = check_image(info['img_path'])
    try:
        content = Path(path).read_bytes()
        labels = mmcv.imfrombytes(content, flag='unchanged', backend='pillow') if content else None
    except Exception as error:
        return [*problems, Problem(ERROR, 'label map cannot be read', path, _one_line(error))]
    if labels is None:
        return [*problems, Problem(ERROR, 'label map cannot be read', path, 'no image in it')]
    if labels.squeeze().ndim != 2:
        detail = f'shape {labels.shape}; it needs one channel of class numbers'
        return [*problems, Problem(ERROR, 'label map in colour', path, detail)]
    if not any(problem.level == ERROR for problem in problems):
        shape = _decoded_shape(Path(info['img_path']).read_bytes())
        if labels.shape[:2] != shape:
            detail = f'{labels.shape[:2]}, image {shape} (height, width)'
            problems.append(Problem(ERROR, 'label map of another size', path, detail))
    problems += _check_labels(labels, info, num_classes, path)
    return problems


def _check_labels(labels: np.ndarray, info: dict, num_classes: int, path: str) -> list[Problem]:
    found = {int(value) for value in np.unique(labels)}
    highest = num_classes - 1
    if info['reduce_zero_label']:  # before label_map, as mmseg does it
        found = {255 if value in (0, 255) else value - 1 for value in found}
    label_map = info.get('label_map') or {}
    values = {label_map.get(value, value) for value in found}
    beyond = sorted(value for value in values if value > highest and value != 255)
    if beyond:
        detail = f'{beyond[:5]} as read; the {num_classes} classes are 0 to {highest}, 255 ignored'
        return [Problem(ERROR, 'labels beyond the classes', path, detail)]
    if not values - {255}:
        return [Problem(WARNING, 'label map without a class', path, 'every pixel is ignored')]
    return []


def check_sample(dataset, index: int) -> list[Problem]:
    """Check a sample of a data set of any other kind by loading it as training would."""
    info = dataset.get_data_info(index)
    where = str(info.get('img_path', f'sample {index}'))
    try:
        dataset.pipeline(info)
    except Exception as error:  # of whatever kind, training would stop at it
        return [Problem(ERROR, 'sample cannot be loaded', where, _one_line(error))]
    return check_image(where) if 'img_path' in info else []


# Small things ----------------------------------------------------------------------------


def _is_coco(node: dict) -> bool:
    if find_spec('mmdet') is None or not node.get('ann_file'):
        return False
    coco, own = import_module('mmdet.datasets').CocoDataset, _class_of(node)
    # Panoptic and LVIS annotations have other fields, and readers of their own.
    readers = ('load_data_list', 'parse_data_info')
    return all(getattr(own, reader, None) is getattr(coco, reader) for reader in readers)


def _class_of(node: dict) -> Any:
    if not isinstance(node['type'], str):
        return node['type']
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(node['type'])


def _classes(node: dict) -> tuple[str, ...] | None:
    classes = (node.get('metainfo') or {}).get('classes')
    classes = classes or _class_of(node).METAINFO.get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else None


def _loads_masks(node: dict) -> bool:
    return any(transform.get('with_mask') for _, transform in walk(node.get('pipeline')))


def _call(job: Callable[[], list[Problem]]) -> list[Problem]:
    return job()


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_hashable_id(annotation: Any) -> bool:
    return isinstance(annotation, dict) and _is_id(annotation.get('image_id'))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) < 1e12


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'[:200]
