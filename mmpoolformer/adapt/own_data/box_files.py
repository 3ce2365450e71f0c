"""Folders of Pascal VOC or YOLO files, a file for each image, written as one COCO file.

The library ``globox`` reads a file and writes COCO. What belongs together, and what is wrong with
it, is found here: the library takes images by their names alone, of one extension.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from ...datasets.images import decoded_shape
from ...utils.errors import first_line, join, printable, short, some
from ...utils.files import check_regular, replace_file
from ...utils.progress import track
from .errors import OwnDataError
from .splits import IMAGES, checked_names

INSTALL_HINT = "pip install 'mmpoolformer[convert]'"
VOC, YOLO = '.xml', '.txt'
BOX_FIELDS = 6  # of a line of YOLO: more are a polygon's
NO_LABELS = 'classes.txt'  # which annotation tools write beside YOLO's
MADE = ', converted by globox'  # how the description of a file ends that was written here
ROUNDED = 1.01  # relative coordinates that some tools write for the edge of an image
VOC_NEEDS = (
    'it needs <filename>, <size> with the width and height of the image, and for each <object> a '
    '<name> and a <bndbox> with xmin ≤ xmax and ymin ≤ ymax'
)
YOLO_NEEDS = (
    'a line is a class number and x, y, width and height, or the points of a polygon, as parts of '
    'the image from 0 to 1; a sixth number is a confidence'
)


def to_coco_file(labels: Path, images: Path, classes: Sequence[str] | None) -> tuple[Path, str]:
    """Write the boxes of a folder as one COCO file beside it.

    Args:
        labels: A folder of ``.xml`` or ``.txt`` files, with the names of the images.
        images: Their folder.
        classes: Names in the order of their categories; ``None`` takes the sorted ones of Pascal
            VOC.

    Returns:
        The file, and what it holds in words.

    Raises:
        OwnDataError: ``globox`` is missing, or a file is not what it should be; names it.
    """
    globox = _import_globox()
    kind, files = _label_files(labels)
    if kind == YOLO and classes is None:
        raise OwnDataError(
            f'{labels} has numbers for classes: give classes (--classes), a text file with their '
            "names, one a line in the order of the numbers, or the data set's data.yaml"
        )
    pairs, alone = _pairs(labels, files, images)
    read = _read_voc if kind == VOC else _read_yolo
    found, ignored, polygons = [], [], 0
    for path, image in track(pairs, len(pairs), labels.name):
        size = _size(image)
        boxes, flags, around = read(globox, path, size, classes)
        found.append(globox.Annotation(image.relative_to(images).as_posix(), size, boxes))
        ignored += flags
        polygons += around
    if classes is None:
        classes = sorted({box.label for annotation in found for box in annotation.boxes})
    if not classes:
        raise OwnDataError(f'none of the {len(files)} files in {labels} has an object')
    classes = checked_names(classes, labels)
    path = labels.with_name(f'{labels.name}_coco.json')
    _write(path, globox.AnnotationSet(found), classes, ignored, labels)
    note = f'{labels.name}: {len(found)} images, {len(ignored)} boxes'
    if polygons:
        note += f', {polygons} of them around polygons'
    if alone:
        note += f'; left out, without a {kind} file: {len(alone)}, such as {printable(alone[0])}'
    return path, note


def _import_globox() -> ModuleType:
    try:
        import globox
    except ImportError as error:
        raise OwnDataError(
            f'folders of labels are converted by the library globox, which cannot be imported '
            f'({first_line(error)}): {INSTALL_HINT}'
        ) from error
    return globox


def _label_files(labels: Path) -> tuple[str, list[Path]]:
    """The format of a folder, and its files."""
    files = defaultdict(list)
    for path in sorted(labels.rglob('*')):
        if path.suffix.lower() in (VOC, YOLO) and path.exists() and not path.is_file():
            raise OwnDataError(f'{path} is no regular file')  # a pipe would never end
        if path.name != NO_LABELS and not path.name.startswith('.'):
            files[path.suffix.lower()].append(path)
    kinds = [kind for kind in (VOC, YOLO) if files[kind]]
    if len(kinds) != 1:
        examples = ' and '.join(str(files[kind][0].relative_to(labels)) for kind in kinds)
        raise OwnDataError(
            f'{labels} has {examples or "no .xml and no .txt file"}: give a folder of Pascal VOC '
            'files (.xml) or of YOLO files (.txt), or one COCO file'
        )
    return kinds[0], files[kinds[0]]


def _pairs(
    labels: Path, files: list[Path], images: Path
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The label files with their images, and the images that have none."""
    by_name = defaultdict(list)
    for path in sorted(images.rglob('*')):
        if path.suffix.lower() in IMAGES and not path.name.startswith('.'):
            by_name[path.relative_to(images).with_suffix('')].append(path)
    pairs = []
    for path in files:
        found = by_name.pop(path.relative_to(labels).with_suffix(''), [])
        if len(found) != 1:
            several = ' and '.join(image.name for image in found)
            raise OwnDataError(
                f'{path} belongs to {several or f"no image in {images}"}: a label file has the '
                'name of one image, in the same sub-folder. Rename or remove it'
            )
        pairs.append((path, found[0]))
    rest = [image.relative_to(images).as_posix() for group in by_name.values() for image in group]
    return pairs, rest


def _size(image: Path) -> tuple[int, int]:
    """Width and height as mmcv decodes it."""
    try:
        height, width = decoded_shape(image)
    except Exception as error:  # PIL has many ways to refuse a file
        raise OwnDataError(
            f'{image} cannot be read as an image ({first_line(error)}): repair it, or remove it '
            'and its label file'
        ) from error
    return width, height


def _read_voc(
    globox: ModuleType, path: Path, size: tuple[int, int], classes: Sequence[str] | None
) -> tuple[list, list[bool], int]:
    """The boxes of a Pascal VOC file, which of them are difficult, and none around a polygon."""
    try:
        annotation = globox.Annotation.from_pascal_voc(path)
        objects = ElementTree.parse(path).getroot().iter('object')
        difficult = [_is_difficult(node) for node in objects]
    except Exception as error:  # also a ValueError or an assertion of the library
        raise OwnDataError(
            f'{path} cannot be read as Pascal VOC ({first_line(error)}): {VOC_NEEDS}'
        ) from error
    if annotation.image_size != size:
        said, has = ('{}×{}'.format(*sides) for sides in (annotation.image_size, size))
        raise OwnDataError(
            f'{path} is for an image of {said}, and its image has {has} (turned as its EXIF entry '
            'says): the boxes would be wrong. Label the image as it is, or bring back the old one'
        )
    for box in annotation.boxes:
        sides = box.xmin, box.ymin, box.xmax, box.ymax
        if not all(abs(side) < 1e12 for side in sides):
            raise OwnDataError(f'{path} has a box of {join(sides)}: {VOC_NEEDS}')
        box.label = box.label.strip()
        if not box.label or (classes is not None and box.label not in classes):
            raise OwnDataError(
                f'{path} has an object of the class {short(box.label)}; the classes are '
                f'{some(classes or ["names that are not empty"])}. Correct the file, or name all '
                'classes (--classes)'
            )
    return annotation.boxes, difficult, 0


def _is_difficult(node: ElementTree.Element) -> bool:
    text = (node.findtext('difficult') or '0').strip()
    if text not in ('0', '1'):
        raise ValueError(f'<difficult> is {text!r}, not 0 or 1')
    return text == '1'


def _read_yolo(
    globox: ModuleType, path: Path, size: tuple[int, int], classes: Sequence[str]
) -> tuple[list, list[bool], int]:
    """The boxes of a YOLO file, of which none is marked, and how many are around polygons."""
    boxes, polygons = [], 0
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OwnDataError(f'{path} cannot be read as text: {error}') from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            boxes.append(_read_line(globox, f'{path}, line {number}', line, size, classes))
            polygons += len(line.split()) > BOX_FIELDS
    return boxes, [False] * len(boxes), polygons


def _read_line(globox: ModuleType, where: str, line: str, size, classes: Sequence[str]) -> Any:
    fields = line.split()
    read = globox.BoundingBox.from_yolo_v5
    if len(fields) > BOX_FIELDS:
        read = globox.BoundingBox.from_yolo_seg
    try:
        box = read(line, image_size=size)
        label, *parts = map(float, fields)
        if not all(0 <= part <= ROUNDED for part in parts):
            raise ValueError('a number is not between 0 and 1')
        if label != int(label):
            raise ValueError('the class is no whole number')
    except Exception as error:  # also an assertion of the library
        raise OwnDataError(f'{where}: {line[:60]!r} ({first_line(error)}): {YOLO_NEEDS}') from error
    if not 0 <= label < len(classes):
        raise OwnDataError(
            f'{where}: class {int(label)}, and the {len(classes)} classes are 0 to '
            f'{len(classes) - 1} ({some(classes)}). Name all classes (--classes)'
        )
    box.label = classes[int(label)]
    return box


def _write(path: Path, found: Any, classes: Sequence[str], ignored: list[bool], labels) -> None:
    """Write a COCO file whose numbers follow from the classes and the names of the images."""
    content = found.to_coco(
        label_to_id={name: number for number, name in enumerate(classes, 1)},
        imageid_to_id={name: number for number, name in enumerate(sorted(found.image_ids), 1)},
    )
    for number, (annotation, ignore) in enumerate(zip(content['annotations'], ignored), 1):
        annotation['id'] = number  # COCO's evaluation takes 0 for «no object»
        annotation['iscrowd'] = int(ignore)  # what mmdet does with difficult objects of VOC
    content['info'] = dict(description=f'{labels}{MADE}')
    try:
        if os.path.lexists(path) and not _is_made(path):
            raise OwnDataError(
                f'{path} is where the boxes of {labels} are written to, and is another file: '
                'rename or remove it, or give it as annotations'
            )
        replace_file(path, json.dumps(content))
    except OSError as error:
        raise OwnDataError(f'{path} cannot be written: {error}') from error


def _is_made(path: Path) -> bool:
    """Whether a file was written here, and may be written anew."""
    try:
        check_regular(path)
        return json.loads(path.read_bytes())['info']['description'].endswith(MADE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
