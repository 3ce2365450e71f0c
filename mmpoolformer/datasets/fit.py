"""Does the model fit its data? Class counts, names and their order, and what is evaluated.

mmdet and mmseg train on whatever fits in shape: a head for other classes than the data set
has, or classes in another order than the annotation file's, cost a run and say nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..archs import is_integer
from ..utils.config_tree import type_of, walk
from ..utils.errors import some
from .evaluation import check_evaluation
from .images import SUFFIXES
from .label_maps import IGNORED, LOSSY, LOSSY_REMEDY, is_jpeg, labels_in
from .problems import ERROR, WARNING, Problem
from .readers import annotation_file, classes_of, has_coco_annotations, is_leaf

SPLITS = ('train', 'val', 'test')
REMEDY = (
    'tools/use_dataset.py sets both; by hand: metainfo=dict(classes=(…,)) in every data set and '
    'num_classes in every head'
)
# Parts whose num_classes is another count: of objects as such, of persons, of stuff, of ImageNet.
OTHER_COUNTS = (
    'backbone', 'rpn_head', 'reid', 'track_head', 'semantic_head', 'stuff_head', 'init_cfg',
    'language_model', 'data_preprocessor', 'train_cfg', 'test_cfg', 'panoptic_fusion_head',
)  # fmt: skip
OTHER_HEADS = ('STDCHead',)  # which tells boundaries from the rest
ALL_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
LABEL_MAPS = 64  # that are looked into for the values that occur
THINGS, STUFF = 'num_things_classes', 'num_stuff_classes'


class Count(NamedTuple):
    """A number of classes that a part of the model is built for.

    Attributes:
        key: Its dotted path in the config.
        value: The number.
    """

    key: str
    value: int


def check_fit(cfg: Config) -> Iterator[Problem]:
    """Compare the heads of a model with the classes of its data sets.

    Args:
        cfg: A complete config, whose ``custom_imports`` are imported and whose scope is set.

    Yields:
        Errors; each names the two things that disagree, and the remedy.
    """
    found: list[tuple[str, tuple[str, ...]]] = []  # places in the config, and classes
    files: dict[tuple, None] = {}  # annotation files with the classes that they are read for
    for split in SPLITS:
        for path, node in walk((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if not is_leaf(node):
                continue
            where = '.'.join(map(str, (f'{split}_dataloader', 'dataset', *path)))
            yield from _check_metainfo(node, where)
            classes = classes_of(node)
            if classes is None:
                continue
            found.append(('.'.join(map(str, (split, *path))), classes))
            if has_coco_annotations(node):
                files[annotation_file(node), classes] = None
                evaluated = coco_files_of(cfg.get(f'{split}_evaluator'))
                files.update(dict.fromkeys((file, classes) for file in evaluated))
            elif 'seg_map_path' in (node.get('data_prefix') or {}):
                yield from check_labels(node, classes, where)
    for file, classes in files:
        yield from check_categories(file, classes)
    yield from check_evaluation(cfg)
    yield from check_single_class(cfg.get('model'))
    if cfg.get('default_scope') == 'mmseg':
        yield from check_ignored(cfg)
    yield from _check_alike(cfg.get('model') or {}, found)


def _check_alike(model: dict, found: list[tuple[str, tuple[str, ...]]]) -> Iterator[Problem]:
    """Compare the classes of all data sets with the first one's for training, else for testing."""
    splits = [place.split('.')[0] for place, _ in found]
    split = next((split for split in ('train', 'test') if split in splits), None)
    if split is None or is_class_agnostic(model):
        return
    first, expected = found[splits.index(split)]
    for place, classes in found:
        if classes != expected:
            detail = f'{place} has {some(classes)}; {first} has {some(expected)}. {REMEDY}'
            key = place.replace('.', '_dataloader.', 1) if '.' in place else f'{place}_dataloader'
            yield Problem(ERROR, 'data sets of different classes', key, detail)
    yield from check_counts(model, expected, split)


def _check_metainfo(node: dict, where: str) -> Iterator[Problem]:
    """mmengine takes a text for the name of a file with the classes in it."""
    classes = (node.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not Path(classes).is_file():
        detail = (
            f'classes={classes!r} is a text, and no file of that name is there. '
            f'For one class write a tuple, with its comma: classes=({classes!r},)'
        )
        yield Problem(ERROR, 'classes that are no list', f'{where}.metainfo', detail)
    if isinstance(classes, (list, tuple)) and not all(isinstance(n, str) for n in classes):
        texts = tuple(map(str, classes))
        detail = f'classes={some(classes)} are no texts: write {texts[:6]!r}'
        yield Problem(ERROR, 'classes that are no names', f'{where}.metainfo', detail)


# Categories --------------------------------------------------------------------------------


def coco_files_of(evaluator: Any) -> list[Path]:
    """The files that COCO's metrics read the true boxes from, where they do not take the data's."""
    metrics = [node for _, node in walk(evaluator) if type_of(node) == 'CocoMetric']
    return [Path(node['ann_file']) for node in metrics if isinstance(node.get('ann_file'), str)]


def read_categories(path: Path) -> list[dict]:
    """The categories of a COCO file, in its order, without reading the annotations where it can.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no COCO file.
    """
    content = path.read_bytes()
    found = re.findall(rb'"categories"\s*:\s*(?=\[)', content)
    # A key that is written with escapes is found by the whole file alone.
    if len(found) == 1 and not re.search(rb'\\u00[0-9a-fA-F]{2}[^"]*"\s*:', content):
        start = content.index(found[0]) + len(found[0])
        text = content[start : start + 2**24].decode(errors='ignore')  # it may end in a character
        categories, _ = json.JSONDecoder().raw_decode(text)
    else:
        categories = json.loads(content)['categories']
    if not all(isinstance(category, dict) and 'name' in category for category in categories):
        raise ValueError('a category has no name')
    return categories


def check_categories(path: Path, classes: tuple[str, ...]) -> Iterator[Problem]:
    """Compare the classes of a config with the categories of its annotation file.

    mmdet takes labels in the order of the file, whatever the order of the classes.
    """
    try:
        names = [category['name'] for category in read_categories(path)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # what is wrong with the file itself is said elsewhere
    missing = [name for name in classes if name not in names]
    kept = tuple(name for name in names if name in classes)
    if missing:
        detail = (
            f'the config has {some(missing)}, which is not among its {len(names)} categories: '
            f'{some(names)}. Set metainfo=dict(classes=…) to them. {REMEDY}'
        )
        yield Problem(ERROR, 'classes of the config', str(path), detail)
    elif kept != classes:
        detail = (
            f'the file has {some(kept)}, the config {some(classes)}: mmdet takes labels in the '
            'order of the file, so each class would be trained as another. Write metainfo classes '
            "in the file's order, in every data set alike"
        )
        yield Problem(ERROR, 'classes in another order', str(path), detail)


# Label maps --------------------------------------------------------------------------------


def check_suffix(dataset: Any, where: str) -> Iterator[Problem]:
    """Name the images that mmseg passes over because of their suffix, which is ``.jpg`` at first.

    Args:
        dataset: A data set of mmseg, which need not be loaded: without an image it cannot be.
        where: Its place in the config.
    """
    if dataset.ann_file:
        return
    files = Path(dataset.data_prefix['img_path']).rglob('*')
    names = [path.name for path in files if path.suffix.lower() in ALL_SUFFIXES]
    passed_over = [name for name in names if not name.endswith(dataset.img_suffix)]
    if not passed_over:
        return
    counts = Counter(Path(name).suffix for name in passed_over)
    suffix, _ = counts.most_common(1)[0]
    detail = (
        f'{len(passed_over)} of {len(names)} images do not end in {dataset.img_suffix} and are '
        f'passed over, such as {passed_over[0]!a}. Set img_suffix={suffix!r} in every data set '
        'that has such images'
    )
    level = WARNING if len(passed_over) < len(names) else ERROR
    yield Problem(level, 'images of another suffix', f'{where}.img_suffix', detail)


def check_labels(node: dict, classes: tuple[str, ...], where: str) -> Iterator[Problem]:
    """Compare the values in some label maps with the classes, as ``reduce_zero_label`` shifts them.

    Args:
        node: Config of a data set of mmseg.
        classes: Its classes.
        where: Its place in the config.
    """
    try:
        dataset = DATASETS.build(dict(node, pipeline=[], lazy_init=True))
        yield from check_suffix(dataset, where)
        dataset.full_init()
        count = min(len(dataset), LABEL_MAPS)
        infos = [dataset.get_data_info(i * len(dataset) // count) for i in range(count)]
        lossy = [path for path in (info['seg_map_path'] for info in infos) if is_jpeg(path)]
        found = set().union(*(labels_in(info['seg_map_path']) for info in infos))
        shifts = infos[0]['reduce_zero_label'] if infos else False
    except Exception:  # of whatever kind: what is wrong with a file itself is said elsewhere
        return
    if lossy:
        yield Problem(ERROR, LOSSY, where, f'{lossy[0]}: {LOSSY_REMEDY}')
    last, where = len(classes), f'{where}.reduce_zero_label'
    if shifts and 0 in found and last not in found:
        is_train = where.startswith('train')
        sure = is_train and found >= set(range(last)) and not _occurs(last, dataset)
        detail = (
            f'reduce_zero_label=True takes label 0 as unlabelled and label k as class k−1, but in '
            f'{count} label maps 0 occurs and {last}, which would be {classes[-1]!r}, does not'
            + (f', while all of 0 to {last - 1} do' if sure else '')
            + '. If 0 is one of your classes: reduce_zero_label=False in every data set, and in '
            'LoadAnnotations where it stands there'
        )
        level = ERROR if sure else WARNING
        yield Problem(level, 'label 0 is ignored, the last class never occurs', where, detail)
    if not shifts and 0 not in found and max(found - {255}, default=0) == last:
        detail = (
            f'the {last} classes are labels 0 to {last - 1}, but in {count} label maps 0 does '
            f'not occur and {last} does: they count from 1. Set reduce_zero_label=True in every '
            'data set'
        )
        yield Problem(ERROR, 'labels count from 1', where, detail)


def check_ignored(cfg: Config) -> Iterator[Problem]:
    """Compare the labels that heads and metrics ignore, 255 by default, and what data sets say."""
    keys = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator')
    found = {}
    for root in (*keys, 'test_evaluator', 'model'):
        for path, node in walk(cfg.get(root), (root,)):
            is_data = is_leaf(node) and 'ignore_index' in node
            at = [key for key in path if isinstance(key, str)]
            is_head = at[-1] in ('decode_head', 'auxiliary_head') and 'type' in node
            if is_data or is_head or type_of(node) == 'IoUMetric':
                key = '.'.join(map(str, (*path, 'ignore_index')))
                found[key] = node.get('ignore_index', IGNORED)
    first = next(iter(found), None)
    for key, label in found.items():
        if label != found[first]:
            detail = f'{key}={label}, but {first}={found[first]}: give all the same'
            yield Problem(ERROR, 'other labels are ignored', key, detail)


def _occurs(label: int, dataset: Any) -> bool:
    """Whether a label is in any of a data set's maps: a class may be rare."""
    paths = (dataset.get_data_info(i)['seg_map_path'] for i in range(len(dataset)))
    return any(label in labels_in(path) for path in paths)


# Heads -------------------------------------------------------------------------------------


def class_counts(model: Any, path: tuple = ('model',)) -> Iterator[Count]:
    """The class counts of all heads of a model, wrapped or not."""
    for at, node in walk(model, path):
        if any(key in OTHER_COUNTS for key in at) or type_of(node) in OTHER_HEADS:
            continue
        value = node.get('num_classes')
        if is_integer(value):
            yield Count('.'.join(map(str, (*at, 'num_classes'))), value)


def panoptic_counts(model: Any) -> list[Count]:
    """How many things and stuff the parts of a panoptic model tell apart, together."""
    return [
        Count('.'.join(map(str, (*at, f'{THINGS}+{STUFF}'))), node[THINGS] + node.get(STUFF, 0))
        for at, node in walk(model, ('model',))
        if THINGS in node
    ]


def name_counts(model: Any) -> list[Count]:
    """How many names the classes of a model's predictions take, where it says so."""
    panoptic = panoptic_counts(model)
    if panoptic or is_class_agnostic(model):
        return panoptic
    agnostic = {at for at, node in walk(model, ('model',)) if node.get('class_agnostic')}
    keys = {'.'.join(map(str, (*at, 'num_classes'))) for at in agnostic}
    return [count for count in class_counts(model) if count.key not in keys]


def check_counts(model: dict, classes: tuple[str, ...], split: str) -> Iterator[Problem]:
    """Compare the class counts of a model's heads with the classes of its data.

    Of a panoptic model, whose boxes are things alone, those of things and stuff together.
    """
    counts = panoptic_counts(model) or class_counts(model)
    wrong = [count for count in counts if count.value != len(classes)]
    if not wrong:
        return
    counts = ', '.join(f'{count.key}={count.value}' for count in wrong)
    detail = (
        f'{counts}, but the {split} data set has {len(classes)} classes: {some(classes)}. {REMEDY}'
    )
    yield Problem(ERROR, 'heads for another number of classes', wrong[0].key, detail)


def check_single_class(model: Any) -> Iterator[Problem]:
    """Find softmax over one class, which is 1 whatever the image: nothing would be trained."""
    for at, node in walk(model, ('model',)):
        if not {'decode_head', 'auxiliary_head'} & set(at) or node.get('num_classes') != 1:
            continue
        losses = [loss for _, loss in walk(node.get('loss_decode'))]
        by_softmax = not losses or any(
            type_of(loss) == 'CrossEntropyLoss' and not loss.get('use_sigmoid') for loss in losses
        )
        if by_softmax and 'loss_cls' not in node and (node.get('out_channels') or 1) == 1:
            detail = (
                'a softmax over one class is 1 everywhere, so that nothing is trained. Name what '
                "is not that class, too, such as classes=('background', 'disc') with labels 0 and 1"
            )
            yield Problem(ERROR, 'a single class', '.'.join(map(str, at)), detail)


def is_class_agnostic(model: dict) -> bool:
    """Whether the counts of a model are none of its data's classes.

    Proposals have no classes, trackers find one and are tested on data with more, and models that
    read a text count its words.
    """
    nodes = [node for _, node in walk(model)]
    kinds = {type_of(node) for node in nodes}
    keys = {key for node in nodes for key in node}
    return 'RPN' in kinds or bool(keys & {'tracker', 'language_model', 'text_encoder'})
