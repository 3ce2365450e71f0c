"""What the class of a data set reads, by its config."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from ..utils.config_tree import type_of, walk


def is_leaf(node: dict) -> bool:
    """Whether a part of a config is a data set that reads files, not one that wraps others."""
    return 'pipeline' in node and 'dataset' not in node and 'datasets' not in node


def annotation_file(node: dict) -> Path:
    """The annotation file of a data set's config."""
    return Path(node.get('data_root') or '', node['ann_file'])


def has_coco_annotations(node: dict) -> bool:
    """Whether a data set is read as mmdet reads COCO's boxes and masks."""
    if find_spec('mmdet') is None or not node.get('ann_file'):
        return False
    coco, own = import_module('mmdet.datasets').CocoDataset, class_of(node)
    # Panoptic and LVIS annotations have other fields, and readers of their own.
    readers = ('load_data_list', 'parse_data_info')
    return all(getattr(own, reader, None) is getattr(coco, reader) for reader in readers)


def class_of(node: dict) -> Any:
    """The class of a data set, or ``None`` for an unknown name."""
    if not isinstance(node['type'], str):
        return node['type']
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(node['type'])


def classes_of(node: dict) -> tuple[str, ...] | None:
    """The classes that a data set trains, by its ``metainfo`` or its class."""
    classes = (node.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = getattr(class_of(node), 'METAINFO', {}).get('classes')
    if (
        isinstance(classes, str) and Path(classes).is_file()
    ):  # mmengine takes a class from each line
        classes = Path(classes).read_text().splitlines()
    return tuple(classes) if isinstance(classes, (list, tuple)) else None


def kept_ratio_scales(node: dict) -> list[tuple[float, float]]:
    """Longer and shorter side that a data set's pipeline resizes images into, ratio kept."""
    scales = []
    for _, transform in walk(node.get('pipeline')):
        given = transform.get('scales') or transform.get('scale')
        if 'Resize' not in type_of(transform) or not transform.get('keep_ratio') or not given:
            continue
        least = min(transform.get('ratio_range') or [1])
        for scale in given if isinstance(given[0], (list, tuple)) else [given]:
            scales.append((least * max(scale), least * min(scale)))
    return scales


def is_text(name: str) -> bool:
    """Whether a name can be written and printed: bytes that are no UTF-8 stand as surrogates."""
    return not any('\ud800' <= character <= '\udfff' for character in name)


def loads_masks(node: dict) -> bool:
    """Whether a data set's pipeline loads masks."""
    return any(transform.get('with_mask') for _, transform in walk(node.get('pipeline')))
