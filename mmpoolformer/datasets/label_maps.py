"""Check label maps, as mmseg lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import DataError, one_line
from ..utils.files import check_regular
from .images import (
    BITS_PER_SAMPLE,
    check_image,
    check_pixels,
    decoded_shape,
    open_image,
    orientation,
)
from .problems import ERROR, WARNING, Problem

IGNORED = 255  # by default, everywhere in mmseg


def check_pair(
    info: dict,
    num_classes: int,
    scales: Sequence[tuple[float, float]] = (),
    ignored: int = IGNORED,
) -> list[Problem]:
    """Check an image and the label map that belongs to it, as mmseg lists them.

    Args:
        info: The entry of the data set.
        num_classes: Classes, which are labels from 0.
        scales: As for :func:`~mmpoolformer.datasets.check_image`.
        ignored: The label that stands for none.
    """
    path = info['seg_map_path']
    problems = check_image(info['img_path'], scales=scales)
    try:
        labels = read_labels(path)
    except Exception as error:
        return [*problems, Problem(ERROR, 'label map cannot be read', path, one_line(error))]
    if is_jpeg(path):
        return [*problems, Problem(ERROR, LOSSY, path, LOSSY_REMEDY)]
    if labels.squeeze().ndim != 2:
        detail = f'shape {labels.shape}; it needs one channel of class numbers'
        return [*problems, Problem(ERROR, 'label map in colour', path, detail)]
    if not any(problem.level == ERROR for problem in problems):
        shape = decoded_shape(info['img_path'])
        if labels.shape[:2] != shape:
            detail = f'{labels.shape[:2]}, image {shape} (height, width)'
            problems.append(Problem(ERROR, 'label map of another size', path, detail))
    problems += _check_labels(labels, info, num_classes, ignored, path)
    return problems


class LabelsFit:
    """A transform behind the one that loads label maps: those that do not fit are errors.

    A cropped map of another size than its image looks as if it belonged to it, and a label beyond
    the classes ends a training inside of its loss, or is not counted in a validation.

    Args:
        num_classes: Classes of the data set, which are labels from 0.
        ignored: The label that stands for none.
    """

    def __init__(self, num_classes: int, ignored: int):
        self.num_classes, self.ignored = num_classes, ignored

    def __call__(self, results: dict) -> dict:
        labels = results.get('gt_seg_map')
        if labels is None:
            return results
        path, size = results.get('seg_map_path'), tuple(results.get('ori_shape', labels.shape)[:2])
        if labels.shape != size:
            raise DataError(
                f'label map {path} has shape {labels.shape}, its image {size} (height, width)'
            )
        if path is not None and _is_wide(path):  # mmseg has cut it to 8 bits
            try:
                largest = read_labels(path).max(initial=0)
            except ValueError as error:
                raise DataError(f'label map {path}: {error}') from error
            if largest > 255:
                raise DataError(f'label map {path} has label {largest}: mmseg reads up to 255')
        beyond = labels[(labels >= self.num_classes) & (labels != self.ignored)]
        if beyond.size:
            raise DataError(
                f'label map {path} has label {beyond.max()} as read; the {self.num_classes} '
                f'classes are 0 to {self.num_classes - 1}, {self.ignored} is ignored'
            )
        return results


LOSSY = 'label map stored as JPEG'
LOSSY_REMEDY = 'JPEG changes values, and with them classes; store label maps as PNG'


def is_jpeg(path: str | Path) -> bool:
    """Whether a file is one of JPEG, whatever its name says."""
    with open(path, 'rb') as file:
        return file.read(3) == b'\xff\xd8\xff'


def labels_in(path: str) -> set[int]:
    """The values in a label map."""
    return {int(value) for value in np.unique(read_labels(path))}


PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag
SPREAD = (b'\x02\x00', b'\x04\x00')  # bits and kind of colour in a PNG: greys of 2 and 4 bits


def read_labels(path: str | Path) -> np.ndarray:
    """A label map as Pillow decodes it, with all its bits.

    Raises:
        OSError: It is no regular file, or cannot be read.
        ValueError: It is too large, or of numbers that are none of classes.
    """
    check_regular(path)
    with open(path, 'rb') as file:
        header = file.read(26)
    if header[:4] == b'\x89PNG' and header[24:] in SPREAD:
        raise ValueError(
            f'its {2 ** header[24]} levels of grey are spread over 0 to 255 when it is read: save '
            'it with 8 bits'
        )
    with open_image(path) as image:
        check_pixels(image)
        _check_greys(image)
        labels = np.array(image)
        if orientation(image) not in (0, 1):
            raise ValueError('its EXIF entry asks to turn it, which mmseg does not: save it turned')
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        raise ValueError(f'its numbers are {labels.dtype}, and classes are whole ones')
    if labels.min(initial=0) < 0:
        raise ValueError(f'it has label {labels.min()}, below 0')
    return labels


def _check_greys(image: Image.Image) -> None:
    """Refuse a TIFF whose greys are not the numbers that stand in it."""
    if image.format != 'TIFF':
        return
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    if image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise ValueError('in it 0 is white, and its numbers are read upside down: save it as PNG')
    if image.mode == 'L' and bits[0] < 8:
        raise ValueError(
            f'its {2 ** bits[0]} levels of grey are spread over 0 to 255 when it is read: save it '
            'with 8 bits'
        )


def _is_wide(path: str | Path) -> bool:
    try:
        with open_image(path) as image:
            return image.mode.startswith(('I', 'F'))
    except OSError:  # not on this disk
        return False


def _check_labels(
    labels: np.ndarray, info: dict, num_classes: int, ignored: int, path: str
) -> list[Problem]:
    found = {int(value) for value in np.unique(labels)}
    highest = num_classes - 1
    if info['reduce_zero_label']:  # before label_map, as mmseg does it
        found = {255 if value in (0, 255) else value - 1 for value in found}
    label_map = info.get('label_map') or {}
    values = {label_map.get(value, value) for value in found}
    beyond = sorted(value for value in values if value > highest and value != ignored)
    if beyond:
        detail = (
            f'{beyond[:5]} as read; the {num_classes} classes are 0 to {highest}, {ignored} ignored'
        )
        return [Problem(ERROR, 'labels beyond the classes', path, detail)]
    if not values - {ignored}:
        return [Problem(WARNING, 'label map without a class', path, 'every pixel is ignored')]
    return []
