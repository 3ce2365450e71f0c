"""The classes of a checkpoint and those of a config: their names, colours and order."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from ..checkpoints.class_names import are_class_names, are_colours
from ..datasets.fit import is_class_agnostic, name_counts
from ..datasets.readers import class_of, classes_of, is_leaf
from ..utils.config_tree import walk
from ..utils.errors import LaunchError, some


def dataset_meta(cfg: Config, checkpoint: dict) -> dict:
    """Names and colours of the classes: the checkpoint's, else the config's.

    Raises:
        LaunchError: There are none, or another number than the heads have.
    """
    theirs, ours = meta_of_checkpoint(checkpoint), meta_of_config(cfg)
    meta, who = (theirs, cfg.load_from) if theirs.get('classes') else (ours, 'the test set')
    classes = list(meta.get('classes') or ())
    if not classes:
        raise LaunchError(
            f'neither {cfg.load_from} nor the config names the classes: give them with '
            "--cfg-options test_dataloader.dataset.metainfo.classes=\"['a','b']\""
        )
    for key, count in name_counts(cfg.model):
        if count != len(classes):
            raise LaunchError(
                f'{who} has {len(classes)} classes ({some(classes)}), but the config says '
                f'{key}={count}: give the config that {cfg.load_from} was trained with'
            )
    own = [str(name).strip() for name in ours.get('classes') or ()]
    if own and own != [name.strip() for name in classes]:  # ADE20K has had "bed " and "bed"
        raise LaunchError(
            f'{cfg.load_from} has the classes {some(classes)}, and the test set of the config has '
            f'{some(ours["classes"])}: give the config that it was trained with'
        )
    colours = meta.get('palette') or ours.get('palette')
    if not isinstance(colours, (list, tuple)) or len(colours) != len(classes):
        colours = np.random.default_rng(0).integers(0, 256, (len(classes), 3)).tolist()
    return dict(meta, classes=classes, palette=[tuple(colour) for colour in colours])


def meta_of_checkpoint(checkpoint: dict) -> dict:
    """What the file says about its classes, as far as it is names and colours.

    Raises:
        LaunchError: Its classes are no names.
    """
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    found = meta.get('dataset_meta')
    if isinstance(found, dict):
        found = {str(key).lower(): value for key, value in found.items()}
    else:
        found = dict(classes=meta.get('CLASSES'), palette=meta.get('PALETTE'))  # mmdet 2, mmseg 0
    classes, palette = found.get('classes'), found.get('palette')
    if classes is not None and not are_class_names(classes):
        raise LaunchError('the classes that the checkpoint names are no printable names')
    return dict(classes=classes, palette=palette if are_colours(palette) else None)


def meta_of_config(cfg: Config) -> dict:
    """What the config's test set, the first of joined ones, says about its classes."""
    nodes = [node for _, node in walk(cfg.test_dataloader.dataset) if is_leaf(node)]
    if not nodes:
        return {}
    with DATASETS.switch_scope_and_registry(cfg.default_scope):
        meta = dict(getattr(class_of(nodes[0]), 'METAINFO', {}), **(nodes[0].get('metainfo') or {}))
        return dict(meta, classes=classes_of(nodes[0]))


def check_class_order(checkpoint: dict, cfg: Config, classes: Any) -> str | None:
    """Refuse a checkpoint that has the classes of the data in another order.

    Args:
        checkpoint: What was read.
        cfg: The config of the run.
        classes: Of its data set.

    Returns:
        A warning, if they have other names.

    Raises:
        LaunchError: Each class would be taken for another.
    """
    theirs, ours = meta_of_checkpoint(checkpoint).get('classes'), list(classes or ())
    if not theirs or not ours or len(theirs) != len(ours) or is_class_agnostic(cfg.model):
        return None  # weights of another number of classes do not fit
    theirs, ours = [name.strip() for name in theirs], [str(name).strip() for name in ours]
    moved = [name for name, own in zip(theirs, ours) if name != own and name in ours]
    if moved:
        raise LaunchError(
            f'its classes are {some(theirs)}, and those of the data {some(ours)}: {moved[0]!r} '
            'would be taken for another class. Write the classes of the config, and the '
            'categories of the annotation files, in its order'
        )
    if theirs == ours:
        return None
    return (
        f'the checkpoint has the classes {some(theirs)}, and the data {some(ours)}: they are taken '
        'for the same, one by one'
    )
