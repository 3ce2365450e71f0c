"""The sister of :func:`~mmpoolformer.swap_backbone`: own data in place of the config's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ...archs import is_integer
from ...datasets.fit import check_single_class
from ...utils.config_tree import braced
from ...utils.errors import short
from ..edit import Change, Edit
from ..swap import swap
from .classes import set_class_counts
from .detection import coco_data, put_coco_data, trains_masks
from .errors import OwnDataError
from .schedule import set_batch_size, set_schedule
from .segmentation import label_map_data, put_label_map_data
from .sizes import set_image_size
from .wrapped import only_leaf, repeats


class Adapted(NamedTuple):
    """A config with own data in it, and what was changed for that."""

    cfg: Config
    changes: list[Change]


def use_dataset(cfg: Config, images: str | Path, annotations: str | Path, **options) -> Config:
    """Put own data into a config: paths, classes, heads, evaluators and the length of training.

    Every ``num_classes`` follows from the data: of all heads, of wrapped detectors, of masks, and
    what losses have per class. The rest of the model and the pipelines stay as they are.

    Args:
        cfg: A complete config of mmdet or mmseg. It is not changed.
        images: Folder of the training images.
        annotations: Detection: a COCO file, whose categories become the classes, in its order,
            or a folder of Pascal VOC or YOLO files, which become a COCO file beside it.
            Segmentation: a folder of label maps with the names of the images.
        val_images: Folder of the validation images, with ``val_annotations``; label maps need it,
            and boxes where both files name the same images. By default ``images``.
        val_annotations: As ``annotations``. Without it a part of the training set becomes the
            validation set, image by image, and the lists are written beside the annotations.
        val_share: The part of the images in that case, 0.2 by default.
        seed: Of the choice, 0 by default.
        classes: Names in the order of their labels, a text file with one a line, or YOLO's
            data.yaml. For segmentation, YOLO, and Pascal VOC, whose own are taken by default.
        palette: Colour of each class, ``[[r, g, b], …]``; by default some that differ.
        reduce_zero_label: Segmentation: label 0 is no class, and label k is class k - 1.
        ignore_index: Segmentation: the label of pixels that do not count, 255 by default.
        image_size: Longer side of the images in pixels, a multiple of 32, for segmentation that of
            the crops; all sizes in pipelines follow in proportion. By default the config's.
        batch_size: Images per step and process; by default the config's. The learning rate is
            scaled to it.
        epochs: Passes over the training set; by default the config's, but at least 1,000 steps.
        arch: The backbone to put in as well, as :func:`~mmpoolformer.swap_backbone` does it.
        checkpoint: Weights of that backbone.

    Returns:
        A new config.

    Raises:
        OwnDataError: The data or the model does not allow it; says why and what does.
        TypeError: ``cfg`` is no config, or there is no such option.
    """
    return adapt(cfg, images, annotations, **options).cfg


def own_data_changes(
    cfg: Config, images: str | Path, annotations: str | Path, **options
) -> list[Change]:
    """Explain what :func:`use_dataset` changes; the arguments and errors are the same."""
    return adapt(cfg, images, annotations, **options).changes


def adapt(
    cfg: Config,
    images: str | Path,
    annotations: str | Path,
    val_images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    classes: Sequence[str] | str | Path | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    reduce_zero_label: bool = False,
    ignore_index: int = 255,
    image_size: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    arch: str | None = None,
    checkpoint: str | None = 'official',
) -> Adapted:
    """Do what :func:`use_dataset` says, and keep account of it."""
    if not isinstance(cfg, Config):
        raise TypeError(
            f'cfg must be a mmengine Config, got {type(cfg).__name__}: use Config.fromfile(PATH)'
        )
    _check_options(batch_size, epochs, val_images, val_annotations)
    earlier = []
    if arch is not None:
        cfg, earlier = swap(cfg, arch, checkpoint)
    split = dict(val_images=val_images, val_annotations=val_annotations, share=val_share, seed=seed)
    edit = Edit(cfg)
    if cfg.get('default_scope') == 'mmdet':
        if reduce_zero_label:
            raise OwnDataError('reduce_zero_label is for segmentation: boxes have no label 0')
        _, old = only_leaf(edit, 'train')
        options = dict(with_masks=trains_masks(edit), filter_cfg=old.get('filter_cfg'))
        data = coco_data(images, annotations, classes, palette, **options, **split)
        put_coco_data(edit, data)
    elif cfg.get('default_scope') == 'mmseg':
        data = label_map_data(
            images, annotations, classes, palette, reduce_zero_label, ignore_index, **split
        )
        put_label_map_data(edit, data)
    else:
        raise OwnDataError(f'default_scope={cfg.get("default_scope")!r} is none of mmdet, mmseg')
    set_image_size(edit, image_size)
    set_class_counts(edit, len(data.classes))
    set_batch_size(edit, batch_size, is_swapped=arch is not None)
    set_schedule(edit, data.train_count, epochs, repeats(cfg.train_dataloader))
    if edit.cfg.get('data_source'):
        source = f'your own data in {data.train.images}'
        edit.set(('data_source',), source, 'said where it is missing')
    _check_result(edit)
    return Adapted(edit.cfg, [*earlier, *edit.changes])


def _check_result(edit: Edit) -> None:
    for problem in check_single_class(edit.cfg.model):
        raise OwnDataError(f'{problem.where}: {problem.detail}')
    text = braced([change.new for change in edit.changes])
    if text is not None:
        raise OwnDataError(
            f'the name {short(text)} holds {{{{, which mmengine replaces when it reads a config: '
            'rename it'
        )


def _check_options(
    batch_size: Any, epochs: Any, val_images: str | Path | None, val_annotations: str | Path | None
) -> None:
    for name, value in (('batch_size', batch_size), ('epochs', epochs)):
        if value is not None and not (is_integer(value) and value > 0):
            raise OwnDataError(f'{name}={value!r}: give a positive whole number')
    if val_images is not None and val_annotations is None:
        raise OwnDataError(
            f'val_images={str(val_images)!r} has no val_annotations beside it: give both, or '
            'neither, and a part of the training images is taken'
        )
