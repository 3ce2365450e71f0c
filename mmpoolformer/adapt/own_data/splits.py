"""The parts of a data set, and what both kinds of annotations share."""

from __future__ import annotations

import colorsys
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from ...archs import is_integer, is_number
from ...checkpoints.class_names import LONGEST_CLASS, are_class_names
from ...utils.errors import first_line, short
from ...utils.files import check_regular, replace_file
from .errors import OwnDataError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


LOOKED_INTO = 64  # files of a data set


class Part(NamedTuple):
    """Where the images and the annotations of one part of a data set are.

    Attributes:
        images: A folder.
        annotations: A COCO file, or a folder of label maps.
        names: A file with the names of the images that belong to it, or ``None`` for all.
        note: What the annotations were made of, in words.
    """

    images: Path
    annotations: Path
    names: Path | None = None
    note: str = ''


class Data(NamedTuple):
    """A data set to train and validate on.

    Attributes:
        train: What is trained on.
        val: What is validated on.
        classes: Their names, in the order of their labels.
        palette: A colour for each.
        train_count: Number of training images.
        label_options: Fields of mmseg's data sets.
    """

    train: Part
    val: Part
    classes: tuple[str, ...]
    palette: list[tuple[int, ...]]
    train_count: int
    label_options: dict | None = None


def folder(path: str | Path, option: str) -> Path:
    """A folder that is there, by its whole path.

    Raises:
        OwnDataError: It is not.
    """
    found = Path(os.path.expanduser(path)).resolve()
    if not os.path.isdir(found):
        raise OwnDataError(f'{option}: there is no folder {found}')
    return found


def class_names(classes: Sequence[str] | str | Path) -> tuple[str, ...]:
    """The names of the classes: as given, from a text file, or from the data.yaml of YOLO.

    Raises:
        OwnDataError: It is no such file, there are none, one is empty or no name, or stands twice.
    """
    if isinstance(classes, (str, Path)):
        path = Path(os.path.expanduser(classes))
        try:
            check_regular(path)
            text = path.read_text(encoding='utf-8-sig')
            is_yaml = path.suffix.lower() in ('.yaml', '.yml')
            classes = _yaml_names(text) if is_yaml else text.rstrip().split('\n')
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise OwnDataError(
                f'classes={str(classes)!r} is no text file that can be read '
                f"({first_line(error)}); in Python, a tuple of names has a comma: ('disc',)"
            ) from error
    return checked_names(classes, 'classes')


def checked_names(names: Sequence, where: str | Path) -> tuple[str, ...]:
    """Names that can be printed, each once; numbers are taken for their digits.

    Raises:
        OwnDataError: Says which is none.
    """
    found = []
    for number, name in enumerate(names):
        name = str(name) if is_integer(name) and abs(name) < 1e12 else name
        name = name.strip() if isinstance(name, str) else name
        if not name or not are_class_names([name]):
            what = f'{short(name)} of type {type(name).__name__}' if name else 'empty'
            raise OwnDataError(
                f'{where}: the name of class {number} is {what}: names are printable texts of up '
                f'to {LONGEST_CLASS} characters, in quotes where YAML takes them for something else'
            )
        found.append(name)
    twice = sorted(name for name, count in Counter(found).items() if count > 1)
    if not found or twice:
        raise OwnDataError(
            f'{where}: {f"{twice[0]!r} stands twice" if twice else "there are none"}'
        )
    return tuple(found)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own takes the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError('it has a key that is a list or a dictionary')
            key = self.construct_object(key_node)
            if key in seen:
                raise ValueError(f'the key {short(key)} stands twice')
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node):
        if not re.fullmatch('-?(0|[1-9][0-9]{0,17})', node.value):
            raise ValueError(f'{short(node.value)} is another number in YAML: quote it')
        return self.construct_yaml_int(node)


_UniqueKeys.add_constructor('tag:yaml.org,2002:int', _UniqueKeys.construct_number)


def _yaml_names(text: str) -> list:
    try:
        content = yaml.load(text, _UniqueKeys)
    except (AttributeError, KeyError, TypeError) as error:  # which PyYAML lets through
        raise ValueError('it has a value that does not fit its tag, the word behind !') from error
    names = content.get('names') if isinstance(content, dict) else None
    if isinstance(content, dict) and 'kpt_shape' in content:
        raise ValueError('it has kpt_shape: lines with key points are not read')
    if isinstance(names, dict) and set(filter(is_integer, names)) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise ValueError('it has no names, a list or numbered from 0')
    if is_integer(content.get('nc')) and content['nc'] != len(names):
        raise ValueError(f'it has {len(names)} names, and nc is {content["nc"]}')
    return names


def choose(items: Sequence, share: float, seed: int) -> set:
    """Choose what is validated on: the same for the same seed, and at least one.

    Raises:
        OwnDataError: There are too few, or the share is none.
    """
    if not is_number(share) or not 0 < share < 1:
        raise OwnDataError(f'val_share={share!r}: give a part of the images between 0 and 1')
    if len(items) < 2:
        raise OwnDataError(
            f'{len(items)} image is too few to take some for validation: give val_annotations'
        )
    count = min(max(1, round(share * len(items))), len(items) - 1)
    return set(random.Random(seed).sample(sorted(items), count))


def write_part(path: Path, text: str) -> None:
    """Write which images belong to one part; another choice stays what a config relies on.

    Raises:
        OwnDataError: There is another choice, or the file cannot be written.
    """
    try:
        check_regular(path)
        if path.exists() and path.read_text(encoding='utf-8') != text:
            raise OwnDataError(
                f'{path} holds another choice of images, which a config may rely on: remove it, or '
                'give both parts as annotations and val_annotations'
            )
        replace_file(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise OwnDataError(f'{path} cannot be written: {error}') from error


def colours(count: int, palette: Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
    """A colour for each class: the ones given, or as many hues. mmdet draws with tuples alone.

    Raises:
        OwnDataError: Another number of colours than classes.
    """
    if palette is not None:
        if len(palette) != count:
            raise OwnDataError(f'palette has {len(palette)} colours for {count} classes')
        return [tuple(map(int, colour)) for colour in palette]
    hues = [colorsys.hsv_to_rgb(k / count, 0.75, 0.9) for k in range(count)]
    return [tuple(round(255 * part) for part in hue) for hue in hues]
