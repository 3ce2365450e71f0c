"""What the new weights ask of the images: their normalisation, and sides in multiples of 32."""

from __future__ import annotations

from collections.abc import Iterator

from ...archs import is_number
from ...utils.config_tree import type_of, walk
from ..edit import Edit
from .rules import PREPROCESSING, ROUNDING, SwapError

TTA = ('tta_pipeline',)
SPLITS = ('train', 'val', 'test')
REASON = "the new weights' images: RGB, ImageNet's"
BY_HAND = (
    'normalise in model.data_preprocessor alone, with mean=[123.675,116.28,103.53], '
    'std=[58.395,57.12,57.375], and bgr_to_rgb=True where images are loaded as BGR'
)


def match_preprocessing(edit: Edit, at: tuple) -> None:
    """Normalise the images as for the new backbone's weights, wherever the config does it.

    Args:
        edit: The config.
        at: Path of the model that has the backbone.

    Raises:
        SwapError: It does not say how images are loaded or normalised, or normalises twice.
    """
    if edit.get((*at, 'backbone')).get('in_channels', 3) != 3:
        return  # the weights know no normalisation for those
    inside, transforms = _preprocessors(edit, at), list(_normalize_transforms(edit))
    if not inside:
        raise SwapError(f'its model has no data_preprocessor: {BY_HAND}')
    if transforms and any(_changes_values(node) for _, node in inside):
        raise SwapError(f'it normalises images in data_preprocessor and in Normalize: {BY_HAND}')
    for _, node in (*inside, *transforms):
        _check_range(node)
    turned_later = any(node.get('bgr_to_rgb') for _, node in inside)
    for path, node in transforms:
        is_rgb = not turned_later and _loads_rgb(edit, node, node.get('to_rgb', True))
        new = {key: PREPROCESSING[key] for key in ('mean', 'std')}
        _set(edit, path, node, dict(new, to_rgb=not is_rgb))
    for path, node in inside:
        new = dict(bgr_to_rgb=False, rgb_to_bgr=False)
        if not transforms:
            if len(_values(node, 'mean')) not in (0, 1, 3):
                continue  # of several images at once, or nothing that mmengine takes
            is_rgb = _loads_rgb(edit, node, node.get('bgr_to_rgb'))
            new = dict(PREPROCESSING, bgr_to_rgb=not is_rgb)
        _set(edit, path, node, new)


def _check_range(node: dict) -> None:
    """Refuse statistics of images whose values are not those of 8 bits."""
    mean, std = ([v for v in _values(node, key) if is_number(v) and v] for key in ('mean', 'std'))
    is_fraction = any(abs(value) <= 1 for value in mean) or any(value < 1 for value in std)
    if is_fraction or any(value > 255 for value in (*mean, *std)):
        raise SwapError(
            f'mean={_values(node, "mean")} and std={_values(node, "std")} are of images in another '
            "range than 0 to 255, which the new weights' statistics are for: load 8 bits, and "
            f'{BY_HAND}'
        )


def _set(edit: Edit, path: tuple, node: dict, new: dict) -> None:
    for key, value in new.items():
        if value or node.get(key) or key == 'to_rgb':
            edit.set((*path, key), value, REASON)


def _preprocessors(edit: Edit, at: tuple) -> list[tuple[tuple, dict]]:
    """Path and config of what can normalise images in the model, innermost where it is wrapped."""
    roots = (('model', 'data_preprocessor'), ('data_preprocessor',), (*at, 'data_preprocessor'))
    found = [pair for root in dict.fromkeys(roots) for pair in walk(edit.find(root), root)]
    normalising = [(path, node) for path, node in found if 'mean' in node]
    return normalising or [
        (path, node)
        for path, node in found
        if path[-1] == 'data_preprocessor' and node and 'data_preprocessor' not in node
    ]


def _normalize_transforms(edit: Edit) -> Iterator[tuple[tuple, dict]]:
    """Path and config of all that normalise images in the pipelines."""
    for pipeline in _pipelines(edit, SPLITS):
        for path, node in walk(edit.get(pipeline), pipeline):
            inner = [type_of(each) for _, each in walk(node.get('transforms'))]
            if type_of(node) == 'Albu' and 'Normalize' in inner:
                raise SwapError(f'it normalises images in Albu: {BY_HAND}')
            if type_of(node) == 'Normalize':
                yield path, node


def _loads_rgb(edit: Edit, node: dict, turns_to_rgb: bool) -> bool:
    """Whether images come as RGB to what normalises them, before it changes their order.

    Raises:
        SwapError: The config does not say it, or contradicts itself.
    """
    if node.get('rgb_to_bgr'):
        return True
    if turns_to_rgb:
        return False
    mean = _values(node, 'mean')
    falls = mean[0] - mean[-1] if mean else 0  # ImageNet's does, from red to blue
    loaders = [loader for path in _pipelines(edit, SPLITS) for loader in _loaders(edit, path)]
    if all(_gives_bgr(loader) for loader in loaders):
        if falls > 0 and loaders:
            raise SwapError(
                f'its mean {mean} is in the order of RGB, and LoadImageFromFile gives BGR, which '
                f'nothing turns: {BY_HAND}'
            )
        return falls > 0
    if falls:
        return falls > 0
    names = ', '.join(sorted({type_of(loader) for loader in loaders}))
    raise SwapError(f'it does not say whether {names} gives RGB or BGR: {BY_HAND}')


def _loaders(edit: Edit, pipeline: tuple) -> list[dict]:
    nodes = [node for _, node in walk(edit.get(pipeline))]
    return [node for node in nodes if 'Load' in type_of(node) and 'Image' in type_of(node)]


def _gives_bgr(loader: dict) -> bool:
    is_tiff = loader.get('imdecode_backend') == 'tifffile'
    return type_of(loader) == 'LoadImageFromFile' and not is_tiff


def _changes_values(node: dict) -> bool:
    return any(_values(node, 'mean')) or any(value != 1 for value in _values(node, 'std'))


def _values(node: dict, key: str) -> list:
    """A mean or deviation, given as a list, as one number or not at all."""
    value = node.get(key)
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def round_test_sizes(edit: Edit) -> None:
    """The published protocol: without it a Semantic FPN loses about one point of mIoU."""
    if edit.find(('model', 'test_cfg')).get('mode') == 'slide':
        return
    for pipeline in list(_pipelines(edit, ('val', 'test'))):
        if pipeline != TTA:
            _round_after_resize(edit, pipeline, dict(ROUNDING))
    for k, transform in enumerate(edit.cfg.get(TTA[0]) or ()):
        if type_of(transform) == 'TestTimeAug':
            _round_after_resize(edit, (*TTA, k, 'transforms'), [dict(ROUNDING)])


def _round_after_resize(edit: Edit, path: tuple, rounding: dict | list[dict]) -> None:
    pipeline = edit.get(path)
    kinds = [type_of(step[0] if isinstance(step, list) else step) for step in pipeline]
    if 'Resize' in kinds and 'ResizeToMultiple' not in kinds:
        after = kinds.index('Resize') + 1
        new = [*pipeline[:after], rounding, *pipeline[after:]]
        edit.set(path, new, 'sides in multiples of 32, as PoolFormer was tested')


def _pipelines(edit: Edit, splits: tuple[str, ...]) -> Iterator[tuple]:
    """Paths of the pipelines of all data sets, those inside of wrappers too, and of the TTA."""
    for split in splits:
        root = (f'{split}_dataloader', 'dataset')
        for path, node in walk(edit.find(root), root):
            if node.get('pipeline'):
                yield (*path, 'pipeline')
    if 'train' in splits:  # hooks that switch to another one
        for path, node in walk(edit.cfg.get('custom_hooks') or [], ('custom_hooks',)):
            yield from ((*path, key) for key in node if key.endswith('pipeline') and node[key])
    if edit.cfg.get(TTA[0]):
        yield TTA
