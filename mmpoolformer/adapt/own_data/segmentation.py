"""Own label maps in a segmentor's config."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.registry import MODELS, TRANSFORMS, Registry

from ...archs import is_integer
from ...datasets.fit import SPLITS
from ...datasets.label_maps import IGNORED, labels_in
from ...utils.config_tree import has, type_of, walk
from ..edit import Edit
from .errors import OwnDataError
from .splits import (
    IMAGES,
    LOOKED_INTO,
    Data,
    Part,
    choose,
    class_names,
    colours,
    folder,
    write_part,
)
from .wrapped import REASON, own_parts, watch_metric

LABEL_MAPS = ('.png', '.bmp', '.tif', '.tiff')


def label_map_data(
    images, annotations, classes, palette, reduce_zero_label: bool, ignore_index: int,
    val_images, val_annotations, share: float, seed: int,
) -> Data:  # fmt: skip
    """Find the two parts of a data set of images and label maps.

    Raises:
        OwnDataError: A folder is missing, images and label maps do not match, or the labels are
            not those of the classes.
    """
    if classes is None:
        raise OwnDataError(
            'label maps have numbers alone: give classes (--classes), their names in the order of '
            'the labels, or a text file with one a line'
        )
    names = class_names(classes)
    _check_ignored(ignore_index, reduce_zero_label, names)
    whole = Part(folder(images, 'images'), folder(annotations, 'annotations'))
    pairs, suffixes = _pairs(whole)
    _check_labels(whole, pairs, suffixes, names, reduce_zero_label, ignore_index)
    if val_annotations is not None:
        if val_images is None:
            raise OwnDataError(
                f'{val_annotations} would be read as the label maps of the training images: give '
                'val_images (--val-images), the images that they belong to'
            )
        val = Part(folder(val_images, 'val_images'), folder(val_annotations, 'val_annotations'))
        if _pairs(val)[1] != suffixes:
            raise OwnDataError(f'{val.images} has other suffixes than {whole.images}: {suffixes}')
        train, count = whole, len(pairs)
    else:
        train, val, count = _split(whole, pairs, share, seed)
    options = dict(
        img_suffix=suffixes[0],
        seg_map_suffix=suffixes[1],
        reduce_zero_label=reduce_zero_label,
        ignore_index=ignore_index,
    )
    return Data(train, val, names, colours(len(names), palette), count, options)


def _pairs(part: Part) -> tuple[list[str], tuple[str, str]]:
    """The names that images and label maps share, and the suffixes of both."""
    found = []
    for where, allowed in ((part.images, IMAGES), (part.annotations, LABEL_MAPS)):
        files = [path for path in where.rglob('*') if path.suffix.lower() in allowed]
        suffixes = {path.suffix for path in files}
        if len(suffixes) != 1:
            what = f'files of {", ".join(sorted(suffixes))}' if suffixes else 'no image'
            raise OwnDataError(
                f'{where} has {what}: mmseg reads one suffix, of {", ".join(allowed)}. Convert the '
                'others, or take one folder for each'
            )
        suffix = suffixes.pop()
        names = {path.relative_to(where).as_posix().removesuffix(suffix) for path in files}
        found.append((names, suffix))
    (images, image_suffix), (maps, map_suffix) = found
    odd = sorted(name for name in images if not name.isprintable() or name != name.strip())
    if odd:
        raise OwnDataError(f'{odd[0]!a}: lists of names cannot hold this one. Rename the image')
    alone = sorted(images - maps)
    if alone:
        raise OwnDataError(
            f'{len(alone)} images have no label map of their name, such as '
            f'{alone[0]}{image_suffix}: there is no {part.annotations / alone[0]}{map_suffix}'
        )
    return sorted(images), (image_suffix, map_suffix)


def _check_labels(
    part: Part, names: list[str], suffixes, classes, reduce_zero_label: bool, ignore_index: int
) -> None:
    """Look into some label maps: what is beyond the classes would end the training."""
    step = max(1, len(names) // LOOKED_INTO)
    for name in names[::step]:
        path = part.annotations / f'{name}{suffixes[1]}'
        try:
            found = labels_in(str(path))
        except Exception as error:  # of whatever kind, it is no label map
            raise OwnDataError(f'{path} cannot be read as a label map: {error}') from error
        first = int(reduce_zero_label)
        last = len(classes) - 1 + first
        allowed = {*range(first, last + 1), ignore_index, *range(first)}
        beyond = sorted(found - allowed)
        if beyond:
            raise OwnDataError(
                f'{path} has label {beyond[0]}, but the {len(classes)} classes are labels {first} '
                f'to {last}, and {ignore_index} is ignored. Name all classes, or set '
                f'reduce_zero_label={not reduce_zero_label} if labels count from {1 - first} '
                f'({"without" if reduce_zero_label else "with"} --reduce-zero-label)'
            )


def _split(whole: Part, names: list[str], share: float, seed: int) -> tuple[Part, Part, int]:
    """Write lists of the names of both parts beside the folder of label maps."""
    chosen = choose(names, share, seed)
    parts = []
    for part, members in (('train', set(names) - chosen), ('val', chosen)):
        path = whole.annotations.with_name(f'{whole.annotations.name}_{part}.txt')
        write_part(path, ''.join(f'{name}\n' for name in sorted(members)))
        parts.append(whole._replace(names=path))
    return (*parts, len(names) - len(chosen))


def _check_ignored(ignore_index: Any, reduce_zero_label: bool, names: tuple[str, ...]) -> None:
    if not is_integer(ignore_index) or not 0 <= ignore_index <= IGNORED:
        raise OwnDataError(f'ignore_index={ignore_index!r}: give a label of 0 to {IGNORED}')
    if reduce_zero_label and ignore_index != IGNORED:
        raise OwnDataError(
            f'ignore_index={ignore_index} and reduce_zero_label: mmseg makes 0 {IGNORED} then and '
            f'shifts all others. Write {IGNORED} for {ignore_index} in the label maps'
        )
    if ignore_index < len(names):
        raise OwnDataError(
            f'ignore_index={ignore_index} is the label of the class {names[ignore_index]!r}, which '
            'would never be trained. If label 0 is none of the classes: reduce_zero_label=True '
            '(--reduce-zero-label), without a name for it'
        )


# Arguments of losses, heads and transforms.
IGNORING = ('ignore_index', 'ignore_label', 'seg_pad_val')


def _set_ignored(edit: Edit, ignore_index: int) -> None:
    """Let all that ignores 255, or pads with it, take another label, defaults included."""
    parts = [(MODELS, ('model',))]
    parts += [(TRANSFORMS, (f'{split}_dataloader', 'dataset')) for split in SPLITS]
    parts += [(TRANSFORMS, ('tta_pipeline',))]
    for registry, root in parts:
        for at, node in list(walk(edit.find(root), root)):
            for key, value in _arguments(node, registry).items():
                if key in IGNORING and value == IGNORED:
                    edit.set((*at, key), ignore_index, REASON)
                if key == 'pad_val' and has(value, 'seg') and value['seg'] == IGNORED:
                    edit.set((*at, key), dict(value, seg=ignore_index), REASON)


def _arguments(node: dict, registry: Registry) -> dict:
    """What a part of a config is built with, defaults included."""
    kind = node.get('type')
    with registry.switch_scope_and_registry('mmseg') as scoped:
        kind = scoped.get(kind) if isinstance(kind, str) else kind
    inits = [cls.__init__ for cls in getattr(kind, '__mro__', ()) if '__init__' in vars(cls)]
    defaults = {
        name: parameter.default
        for init in reversed(inits)
        for name, parameter in inspect.signature(init).parameters.items()
    }
    return dict(defaults, **node)


def put_label_map_data(edit: Edit, data: Data) -> None:
    """Let every data set, pipeline, head and evaluator of a config read own label maps."""
    options = data.label_options
    metainfo = dict(classes=data.classes, palette=data.palette)
    for part, path, old in own_parts(edit, data):
        new = dict(
            type='BaseSegDataset',
            metainfo=metainfo,
            data_root='',
            ann_file=str(part.names or ''),
            data_prefix=dict(img_path=str(part.images), seg_map_path=str(part.annotations)),
            pipeline=old['pipeline'],
            **options,
        )
        if old.get('test_mode'):
            new['test_mode'] = True
        edit.set(path, new, REASON)
        for at, step in list(walk(edit.get(path), path)):
            if type_of(step) == 'LoadAnnotations' and step.get('reduce_zero_label') is not None:
                edit.set((*at, 'reduce_zero_label'), options['reduce_zero_label'], REASON)
    if options['ignore_index'] != IGNORED:
        _set_ignored(edit, options['ignore_index'])
    for split in ('val', 'test'):
        if edit.cfg.get(f'{split}_dataloader'):
            old = edit.cfg.get(f'{split}_evaluator')
            first = old[0] if isinstance(old, (list, tuple)) and old else old or {}
            metrics = first.get('iou_metrics', ['mIoU'])
            new = dict(type='IoUMetric', iou_metrics=metrics, ignore_index=options['ignore_index'])
            edit.set((f'{split}_evaluator',), new, REASON)
    watch_metric(edit, 'm', 'mIoU')
