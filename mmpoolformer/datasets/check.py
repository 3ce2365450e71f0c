"""Find what is wrong with a data set before a long run does.

What would stop training, or train on wrong numbers, is an error. What mmdet and mmseg handle
by a rule of theirs (they skip, clip or convert it) is a warning that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..registry import import_custom_modules
from ..utils.config_tree import walk
from ..utils.errors import LaunchError, one_line, some
from .coco import check_coco
from .fit import SPLITS, check_fit
from .images import check_image
from .label_maps import IGNORED, check_pair
from .problems import ERROR, WARNING, Problem
from .readers import (
    annotation_file,
    classes_of,
    has_coco_annotations,
    is_leaf,
    kept_ratio_scales,
    loads_masks,
)


def check_config(
    cfg: Config, workers: int = 0, progress: Callable[[Iterator, int, str], Iterator] | None = None
) -> Iterator[Problem]:
    """Check every data set that a config trains and tests on.

    Args:
        cfg: A complete config of mmdet or mmseg.
        workers: Processes to read images with; 0 reads them in this one.
        progress: Called with the iterator over results, their count and a title; yields from it,
            as :func:`~mmpoolformer.utils.progress.track` does.

    Yields:
        The problems, data set by data set.

    Raises:
        LaunchError: The config names no data set.
    """
    if not cfg.get('default_scope'):
        raise LaunchError('the config has no default_scope: mmdet or mmseg')
    init_default_scope(cfg.default_scope)
    import_custom_modules(cfg)
    progress = progress or (lambda results, count, title: results)
    yield from check_fit(cfg)
    seen = set()
    for split in SPLITS:
        for _, node in walk((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if not is_leaf(node):
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
    prefix, scales = dict(node.get('data_prefix') or {}), kept_ratio_scales(node)
    if has_coco_annotations(node):
        path = annotation_file(node)
        problems, images = check_coco(
            path,
            Path(root, prefix.get('img', prefix.get('img_path', ''))),
            classes=classes_of(node),
            with_masks=loads_masks(node),
            filter_cfg=None if node.get('test_mode') else node.get('filter_cfg'),
        )
        yield from problems
        jobs = [partial(check_image, name, size, scales) for name, size in images]
    else:
        try:
            dataset = DATASETS.build(dict(node, lazy_init=False))
        except Exception as error:  # of whatever kind, this data set cannot be trained on
            yield Problem(ERROR, 'data set cannot be built', title, one_line(error))
            return
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if not infos:
            yield Problem(ERROR, 'empty data set', title, 'no image was found')
        if infos and infos[0].get('xml_path'):
            yield from _check_voc_names(infos, dataset.metainfo['classes'], title)
        if infos and infos[0].get('seg_map_path') and 'reduce_zero_label' in infos[0]:
            count = len(dataset.metainfo['classes'])
            ignored = getattr(dataset, 'ignore_index', IGNORED)
            jobs = [partial(check_pair, info, count, scales, ignored) for info in infos]
        else:
            jobs = [partial(check_sample, dataset, i) for i in range(len(infos))]
    with ProcessPoolExecutor(workers) if workers else nullcontext() as pool:
        results = map(_call, jobs) if pool is None else pool.map(_call, jobs, chunksize=16)
        for problems in progress(results, len(jobs), title):
            yield from problems


def _check_voc_names(infos: list[dict], classes: Sequence[str], title: str) -> Iterator[Problem]:
    """Compare the names in Pascal VOC files with the classes: mmdet passes over all others."""
    found: set[str] = set()
    for info in infos:
        with suppress(OSError, ElementTree.ParseError):  # which the sample itself shows
            nodes = ElementTree.parse(info['xml_path']).iter('object')
            found.update(node.findtext('name', '') for node in nodes)
    others, never = sorted(found - set(classes)), [name for name in classes if name not in found]
    if others:
        detail = f'{some(others)} are objects of the files and no classes'
        detail += f', and {some(never)} are classes that never occur' if never else ''
        level = ERROR if never else WARNING
        yield Problem(level, 'category not trained, skipped', title, detail)


def check_sample(dataset, index: int) -> list[Problem]:
    """Check a sample of a data set of any other kind by loading it as training would."""
    path = dataset.get_data_info(index).get('img_path')  # of several channels or frames, a list
    where = str(path or f'sample {index}')
    try:
        dataset.prepare_data(index)
    except Exception as error:  # of whatever kind, training would stop at it
        return [Problem(ERROR, 'sample cannot be loaded', where, one_line(error))]
    return check_image(where) if isinstance(path, str) else []


def _call(job: Callable[[], list[Problem]]) -> list[Problem]:
    return job()
