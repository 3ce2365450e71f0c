"""Check COCO annotation files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from ..archs import is_integer, is_number
from ..utils.errors import join, one_line
from ..utils.files import check_regular
from .images import MOST_PIXELS
from .problems import ERROR, WARNING, Problem
from .readers import is_text

BROKEN_MASK, OTHER_SIZE, NO_MASK = 'broken mask', 'mask of another size', 'no mask'
SCORED = 'not trained, but a validation counts it as missed. Remove it'
LARGEST_ID = 2**53
LONGEST_OUTLINE = 5_000_000  # pixels, of all polygons of an object: 200 MB


def check_coco(
    path: Path,
    image_folder: Path,
    classes: tuple[str, ...] | None,
    with_masks: bool,
    filter_cfg: dict | None = None,
) -> tuple[list[Problem], list[tuple[Path, tuple[int, int]]]]:
    """Check a COCO annotation file.

    Args:
        path: The JSON file.
        image_folder: Where its ``file_name`` entries lead from.
        classes: Category names that the config trains.
        with_masks: Whether the config loads masks.
        filter_cfg: Of mmdet's data set, for one that is trained on.

    Returns:
        The problems, and the images that it lists with width and height.
    """
    where = str(path)
    try:
        coco = read_coco(path)
    except OSError as error:
        return [
            Problem(ERROR, 'annotations cannot be read', where, error.strerror or str(error))
        ], []
    except (ValueError, RecursionError) as error:
        return [Problem(ERROR, 'broken JSON', where, one_line(error))], []
    return check_content(coco, where, image_folder, classes, with_masks, filter_cfg)


def read_coco(path: Path) -> Any:
    """Read a COCO annotation file, as mmdet and COCO's tools do.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON in UTF-8, without a byte order mark.
        RecursionError: It is nested too deeply.
    """
    check_regular(path)
    return json.loads(path.read_text(encoding='utf-8'))


def check_content(
    coco: Any,
    where: str,
    image_folder: Path,
    classes: tuple[str, ...] | None,
    with_masks: bool,
    filter_cfg: dict | None = None,
) -> tuple[list[Problem], list[tuple[Path, tuple[int, int]]]]:
    """Check what a COCO annotation file holds, as :func:`check_coco` does."""
    parts = ('images', 'annotations', 'categories')
    if not isinstance(coco, dict) or not all(isinstance(coco.get(k), list) for k in parts):
        detail = f'it needs the lists {", ".join(parts)}'
        return [Problem(ERROR, 'no COCO annotations', where, detail)], []
    problems, categories = _check_categories(coco['categories'], classes, where)
    more, images = _check_images(coco['images'], where)
    problems += more
    usable = crowds = 0
    for position, annotation in enumerate(coco['annotations']):
        more, is_used = _check_annotation(annotation, position, images, categories, with_masks)
        problems += [p._replace(where=f'{where}, {p.where}') for p in more]
        is_crowd = isinstance(annotation, dict) and bool(annotation.get('iscrowd'))
        crowds += is_crowd
        usable += is_used and not is_crowd
    problems += _duplicates(coco['annotations'], 'annotation', where)
    problems += _check_counted(coco, where)
    corners = sum(_looks_like_corners(a, images) for a in coco['annotations'])
    if corners >= 10 and 2 * corners > len(coco['annotations']):
        detail = (
            f'{corners} of {len(coco["annotations"])} boxes reach over the edge of their image, '
            'but would not as two corners: COCO’s are x, y, width and height'
        )
        problems.append(Problem(ERROR, 'boxes of another kind', where, detail))
    if 10 * crowds > len(coco['annotations']):
        detail = (
            f'{crowds} of {len(coco["annotations"])} have iscrowd=1, as CVAT writes for masks: '
            'they are not trained, and not scored as objects. Set iscrowd to 0 where they are'
        )
        problems.append(Problem(WARNING, 'many crowds', where, detail))
    if not usable:
        all_crowds = 0 < crowds == len(coco['annotations'])
        detail = 'training sees no object' + (': set iscrowd=0 in all' if all_crowds else '')
        problems.append(Problem(ERROR, 'no usable annotation', where, detail))
    boxed = {a.get('image_id') for a in coco['annotations'] if _is_hashable_id(a)}
    empty = [image for image in images if image not in boxed]
    if empty:
        detail = f'{len(empty)} of {len(images)}; left out where filter_empty_gt is set'
        problems.append(Problem(WARNING, 'images without annotations', where, detail))
    if images and not count_trained(images.values(), boxed, filter_cfg):
        detail = f'filter_cfg={filter_cfg} leaves out all {len(images)}'
        problems.append(Problem(ERROR, 'no image to train on', where, detail))
    files = [
        (image_folder / image['file_name'], (image['width'], image['height']))
        for image in images.values()
    ]
    return problems, files


def count_trained(images: Iterable[dict], boxed: Container, filter_cfg: dict | None) -> int:
    """How many images mmdet trains on.

    Args:
        images: Entries of a COCO file.
        boxed: The ids of those that have annotations.
        filter_cfg: What mmdet's data set leaves out.
    """
    options = filter_cfg or {}
    least, all_boxed = options.get('min_size', 0), options.get('filter_empty_gt', False)
    return sum(
        min(image['width'], image['height']) >= least and (not all_boxed or image['id'] in boxed)
        for image in images
    )


def rounded_ids(ids: Iterable) -> list[int]:
    """Those that COCO's evaluation rounds, as it makes floats of them."""
    return [number for number in ids if is_integer(number) and abs(number) > LARGEST_ID]


def _check_counted(coco: dict, where: str) -> Iterator[Problem]:
    """Find what COCO's evaluation does not count, or ends at."""
    for key in ('images', 'annotations', 'categories'):
        entries = [entry for entry in coco[key] if isinstance(entry, dict)]
        beyond = rounded_ids(entry.get('id') for entry in entries)
        if beyond:
            detail = f'{beyond[0]}, beyond 2^53: COCO’s evaluation rounds it. Number them anew'
            yield Problem(ERROR, f'id in {key} too large', where, detail)
    annotations = [entry for entry in coco['annotations'] if isinstance(entry, dict)]
    if any(is_integer(a.get('id')) and a['id'] == 0 for a in annotations):
        detail = 'COCO’s evaluation takes it for none; tools/ count it, other programs do not'
        yield Problem(WARNING, 'annotation id 0', where, detail)
    without = sum('iscrowd' not in annotation for annotation in annotations)
    if without:
        detail = f'{without}: 0 is taken by tools/; other programs end in a KeyError'
        yield Problem(WARNING, 'annotations without iscrowd', where, detail)


def _check_categories(categories: list, classes, where: str) -> tuple[list[Problem], set]:
    problems, names = [], {}
    for category in categories:
        fields = category if isinstance(category, dict) else {}
        if is_integer(fields.get('id')) and isinstance(fields.get('name'), str):
            names[fields['id']] = fields['name']
        else:
            problems.append(Problem(ERROR, 'broken category', where, repr(category)[:80]))
    problems += _duplicates(categories, 'category', where)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        detail = f'{twice[0]!a}: mmdet takes them for two classes. Remove the one without objects'
        problems.append(Problem(ERROR, 'category names used twice', where, detail))
    missing = [name for name in classes or () if name not in names.values()]
    if missing:
        detail = f'not among its categories: {join(missing[:5])}'
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
        if not is_integer(fields.get('id')):
            problems.append(Problem(ERROR, 'broken image entry', here, 'no integer id'))
        elif not isinstance(name, str) or not name or '\0' in name or not is_text(name):
            problems.append(Problem(ERROR, 'broken image entry', here, f'file_name {name!r}'))
        elif os.path.isabs(name) or '..' in Path(name).parts:
            detail = f'file_name {name!r} leads out of the image folder'
            problems.append(Problem(ERROR, 'broken image entry', here, detail))
        elif not all(is_integer(side) and side > 0 for side in sides) or prod(sides) > MOST_PIXELS:
            detail = f'width and height {sides}'
            problems.append(Problem(ERROR, 'broken image entry', here, detail))
        else:
            images[fields['id']] = fields
    names = Counter(os.path.normpath(image['file_name']) for image in images.values())
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        detail = f'{len(twice)}, such as {twice[0]!a}: its objects are divided between its entries'
        problems.append(Problem(ERROR, 'image files listed twice', where, detail))
    return problems + _duplicates(entries, 'image', where), images


def _check_annotation(
    annotation: Any, position: int, images: dict, categories: set, with_masks: bool
) -> tuple[list[Problem], bool]:
    """The problems of an annotation, and whether training uses it."""
    fields = annotation if isinstance(annotation, dict) else {}
    here = f'annotation {fields.get("id", f"at position {position}")}'
    for key in ('id', 'image_id', 'category_id'):
        if not is_integer(fields.get(key)):
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
    crowd = fields.get('iscrowd', 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        return [Problem(ERROR, 'broken annotation', here, f'iscrowd {crowd!r}'[:80])], False
    masks = _check_mask(fields.get('segmentation'), image, here) if with_masks else []
    harmful = [p for p in masks if p.kind in (BROKEN_MASK, OTHER_SIZE)]
    if harmful:  # COCO's evaluation reads those of skipped ones, too
        return harmful, False
    if fields['category_id'] not in categories:
        detail = f'category_id {fields["category_id"]}'
        return [Problem(WARNING, 'category not trained, skipped', here, detail)], False
    if any(problem.kind == NO_MASK for problem in masks):  # at which COCO's evaluation ends
        return masks, False
    if fields.get('ignore'):
        detail = 'it is not trained; it is scored all the same where iscrowd is not 1'
        return [Problem(WARNING, 'ignored annotation', here, detail)], False
    x, y, width, height = box
    inside = [
        max(0, min(x + width, image['width']) - max(x, 0)),
        max(0, min(y + height, image['height']) - max(y, 0)),
    ]
    if width < 1 or height < 1 or fields['area'] <= 0:
        detail = f'bbox {box}, area {fields["area"]}: {SCORED}'
        return [Problem(WARNING, 'box without area, skipped', here, detail)], False
    if min(inside) == 0:
        detail = f'bbox {box}: {SCORED}'
        return [Problem(WARNING, 'box outside of the image, skipped', here, detail)], False
    problems = []
    if inside[0] < width - 1 or inside[1] < height - 1:
        detail = f'bbox {box} in {image["width"]}×{image["height"]}'
        problems.append(Problem(WARNING, 'box over the edge of the image', here, detail))
    # Those of crowds are not trained.
    problems += [p for p in masks if not crowd or p != _no_pixels(here)]
    return problems, not any(problem.level == ERROR for problem in problems)


def _looks_like_corners(annotation: Any, images: dict) -> bool:
    """Whether a box leaves its image as x, y, width and height, and not as two corners."""
    if not _is_hashable_id(annotation) or annotation['image_id'] not in images:
        return False
    box, image = annotation.get('bbox'), images[annotation['image_id']]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return False
    x, y, right, bottom = box
    leaves = x + right > image['width'] + 1 or y + bottom > image['height'] + 1
    return leaves and 0 <= x < right <= image['width'] and 0 <= y < bottom <= image['height']


def _check_mask(mask: Any, image: dict, here: str) -> list[Problem]:
    if not mask:
        return [Problem(ERROR, NO_MASK, here, 'the config loads masks')]
    if isinstance(mask, list):
        if not all(isinstance(p, list) and all(map(_is_finite, p)) for p in mask):
            return [Problem(ERROR, BROKEN_MASK, here, 'a polygon is a list of numbers')]
        if len(mask[0]) <= 4:  # COCO's tools take it for the kind of all
            detail = f'a first polygon of {len(mask[0])} numbers: it needs three points. Remove it'
            return [Problem(ERROR, BROKEN_MASK, here, detail)]
        if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
            detail = 'no polygon has three points'
            return [Problem(WARNING, 'mask without area, ignored', here, detail)]
        if any(abs(number) > 1e6 for polygon in mask for number in polygon):
            return [Problem(ERROR, BROKEN_MASK, here, 'coordinates over a million')]
        if sum(map(_outline, mask)) > LONGEST_OUTLINE:  # COCO's tools keep every pixel of it
            detail = f'an outline of more than {LONGEST_OUTLINE} pixels'
            return [Problem(ERROR, BROKEN_MASK, here, detail)]
        return [] if _covers_pixels(mask, image) else [_no_pixels(here)]
    size, counts = (mask.get(k) if isinstance(mask, dict) else None for k in ('size', 'counts'))
    if size != [image['height'], image['width']]:
        detail = f'size {size}, image {[image["height"], image["width"]]} (height, width)'
        return [Problem(ERROR, OTHER_SIZE, here, detail)]
    if isinstance(counts, list):
        good = all(is_integer(count) and count >= 0 for count in counts)
        if not good or sum(counts) != size[0] * size[1]:
            return [Problem(ERROR, BROKEN_MASK, here, 'its runs do not add up to the image')]
        return [] if any(counts[1::2]) else [_no_pixels(here)]
    if not isinstance(counts, str):
        return [Problem(ERROR, BROKEN_MASK, here, 'no counts')]
    runs = _decode_runs(counts)
    if runs is None or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        return [Problem(ERROR, BROKEN_MASK, here, 'its runs do not add up to the image')]
    return [] if any(runs[1::2]) else [_no_pixels(here)]


def _outline(polygon: list) -> float:
    """The length of a polygon in pixels, as COCO's tools walk along it."""
    xs, ys = polygon[::2], polygon[1::2]
    steps = zip(xs, ys, [*xs[1:], *xs[:1]], [*ys[1:], *ys[:1]])
    return sum(max(abs(x - to_x), abs(y - to_y)) for x, y, to_x, to_y in steps)


def _no_pixels(here: str) -> Problem:
    detail = 'its box would be trained with an empty mask: mend or remove the annotation'
    return Problem(ERROR, 'mask without pixels', here, detail)


def _covers_pixels(polygons: list[list], image: dict) -> bool:
    """Whether mmdet, which leaves COCO's tools to it, finds a pixel inside of the polygons."""
    from pycocotools import mask as masks  # there with mmdet

    outlines = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
    xs, ys = ([v for p in outlines for v in p[axis::2]] for axis in (0, 1))
    width, height = image['width'], image['height']
    if max(xs) < 0 or max(ys) < 0 or min(xs) > width or min(ys) > height:
        return False
    return masks.area(masks.merge(masks.frPyObjects(outlines, height, width))) > 0


def _decode_runs(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed notation: six bits a character, 5 of them digits."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 30:  # COCO's tools compute with 32 bits
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
    counts = Counter(e['id'] for e in entries if isinstance(e, dict) and is_integer(e.get('id')))
    twice = [i for i, count in counts.items() if count > 1]
    if not twice:
        return []
    return [Problem(ERROR, f'{what} ids used twice', where, ', '.join(map(str, twice[:5])))]


def _is_hashable_id(annotation: Any) -> bool:
    return isinstance(annotation, dict) and is_integer(annotation.get('image_id'))


def _is_finite(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e12  # of NaN neither
