"""Export a trained model as one file, and see that it computes what PyTorch does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_to_model
from torch import Tensor, nn

from ..deploy import switch_to_deploy
from ..exporting import comparing, formats, quantising
from ..exporting.graphs import EXAMPLE, record, sides
from ..exporting.metadata import BACKBONE, DETECTOR, RAW, Metadata, model_of
from ..exporting.runtimes import OpenVino, Runtime, open_model
from ..exporting.samples import ExportedModel
from ..exporting.wrappers import WHOLE, Backbone, Raw, Wrapper
from ..registry import build_model
from ..utils.config_tree import type_of, unsync_batch_norms
from ..utils.errors import LaunchError, join, one_line, printable
from ..utils.progress import track
from . import export_request as request
from .checks import check_checkpoints, check_data
from .dataset_meta import dataset_meta
from .inference import misfit

# The metrics by which int8 is judged, in 0–1 or per cent, with the most of each that may be lost.
METRICS = {'coco/bbox_mAP': 1.0, 'coco/segm_mAP': 1.0, 'mIoU': 100.0}
CALIBRATE = 64  # images
MOST_LOST = {'coco/bbox_mAP': 0.010, 'coco/segm_mAP': 0.010, 'mIoU': 0.005}


class Report(NamedTuple):
    """What an export found.

    Attributes:
        path: The file.
        meta: What it says about itself.
        differences: The largest from PyTorch, by output.
        images: How many images they were found on.
        metrics: Of float32 and int8, if it was quantised.
    """

    path: Path
    meta: Metadata
    differences: list[comparing.Difference]
    images: int
    metrics: dict[str, dict]


def export(
    config: Config,
    checkpoint: str,
    out: str | Path,
    format: str = 'onnx',
    size: tuple[int, int] | None = None,
    part: str = 'whole',
    int8: bool = False,
    calibrate: int = CALIBRATE,
    check: int = 8,
    check_sizes: Sequence[tuple[int, int]] = (),
    tolerance: float = comparing.TOLERANCE,
) -> Report:
    """Export a trained model, check it, and only then put it in its place.

    Args:
        config: The config, as :func:`~.launch.load_config` reads it.
        checkpoint: Its weights.
        out: The file.
        format: ``'onnx'``, ``'openvino'`` or ``'torch-export'``.
        size: Height and width; ``None`` leaves them open.
        part: ``'whole'``; ``'raw'`` stops at the outputs of the heads; ``'backbone'``.
        int8: Quantise, calibrated on the training set and judged on the validation set.
        calibrate: Images for that.
        check: Images to compare with PyTorch on.
        check_sizes: Heights and widths of made images to compare on besides.
        tolerance: The largest difference that is accepted, see :mod:`~..exporting.comparing`.

    Raises:
        LaunchError: What a user can mend, or too large a difference; nothing is written then.
    """
    path = Path(out)
    request.check_sizes(check_sizes, size)
    request.check(config, checkpoint, path, format, part, int8, calibrate, check)
    init_default_scope(config.default_scope)
    model, labels = _load(config, checkpoint)
    reference = copy.deepcopy(model)
    switch_to_deploy(model)
    wrapper = _wrap(model, config.default_scope, part)
    example = _example(wrapper, size or EXAMPLE)
    print(f'recording {type(model).__name__} as a graph, a minute or so', file=sys.stderr)
    program = record(wrapper, example, dynamic=size is None)
    meta = _metadata(wrapper, program, example, labels, config)
    metrics: dict = {}
    with formats.placed(path) as partial:
        if int8:
            made, metrics = _quantise(program, config, meta, calibrate)
            formats.save_openvino(made, partial, meta)
        else:
            formats.write(program, list(meta.outputs), partial, format, meta)
        runtime = open_model(partial, allow_pickle=True)
        found, count = _compare(runtime, reference, config, part, check, check_sizes)
        if not int8:  # which was judged by its metric
            _accept(found, count, tolerance, format)
    return Report(path, meta, found, count, metrics)


def _metadata(wrapper, program, example, labels, cfg: Config) -> Metadata:
    heights, widths = sides(program)
    described = f'{wrapper.input}{_resizing(cfg)}', wrapper.describe(example)
    model = model_of(cfg)
    return Metadata(wrapper.kind, *labels, *described, heights, widths, model, wrapper.options())


def _resizing(cfg: Config) -> str:
    """How the test pipeline resizes images, which is done before a file is asked."""
    pipeline = ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline') or []
    steps = [dict(step) for step in pipeline if 'Resize' in str(type_of(step))]
    return f': {printable(join(steps))}' if steps else ''


def _accept(found: list, count: int, tolerance: float, form: str) -> None:
    if not all(difference.size <= tolerance for difference in found):
        raise LaunchError(
            f'{form} differs from PyTorch on {count} images by {comparing.describe(found)}, of '
            f'which {tolerance} is accepted: nothing was written. --tolerance accepts more'
        )


def _load(cfg: Config, checkpoint: str) -> tuple[nn.Module, tuple[list, list]]:
    """The model with all its weights, and names and colours of its classes."""
    cfg.load_from = checkpoint
    check_checkpoints(cfg, 'test')
    model_cfg = copy.deepcopy(cfg.model)
    unsync_batch_norms(model_cfg)
    try:
        model = build_model(model_cfg, cfg.default_scope).eval()
    except (KeyError, TypeError, ValueError, ImportError) as error:
        raise LaunchError(f'the model cannot be built: {one_line(error)}') from error
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    try:
        _load_checkpoint_to_model(model, content, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise misfit(checkpoint, error) from error
    meta = dataset_meta(cfg, content)
    return model, (list(meta['classes']), [list(colour) for colour in meta['palette']])


def _wrap(model: nn.Module, scope: str, part: str) -> nn.Module:
    if part != 'whole':
        return {RAW: Raw, BACKBONE: Backbone}[part](model).eval()
    if scope == 'mmdet' and not hasattr(model, 'predict'):
        raise LaunchError(f'{type(model).__name__} predicts no boxes: --raw exports its maps')
    return WHOLE[scope](model).eval()


def _example(wrapper: nn.Module, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(wrapper, Wrapper):
        small = torch.rand(1, 3, 8, 8, generator=generator) * 255
        return nn.functional.interpolate(small, size, mode='bicubic').clamp(0, 255).byte()
    return torch.randn(1, 3, *size, generator=generator)


# The check against PyTorch.


def _compare(
    runtime: Runtime,
    reference: nn.Module,
    cfg: Config,
    part: str,
    count: int,
    sizes: Sequence[tuple[int, int]],
) -> tuple[list[comparing.Difference], int]:
    """The largest differences on images of the test set and on made ones."""
    found, images = [], 0
    wrapper = _wrap(reference, cfg.default_scope, part)
    ours = ExportedModel.of(runtime) if runtime.meta.kind not in (RAW, BACKBONE) else None
    samples = chain(_samples(cfg, runtime.meta, count), _made(cfg, sizes))
    for data in track(samples, count + len(sizes), 'compared with PyTorch'):
        images += 1
        if ours is None:
            image = data['inputs'].flip(0)[None].contiguous()
            image = image if runtime.meta.kind == RAW else image.float() / 58 - 2
            with torch.no_grad():
                theirs = wrapper(image)
            outputs = runtime(image.numpy())
            found += comparing.compare_tensors(outputs, outputs.values(), theirs)
            continue
        batches = [
            dict(inputs=[data['inputs']], data_samples=[copy.deepcopy(data['data_samples'])])
            for _ in range(2)
        ]
        with torch.no_grad():
            (sample,), (theirs,) = ours.test_step(batches[0]), reference.test_step(batches[1])
        found += comparing.compare_samples(sample, theirs)
    found = comparing.largest(found)
    if runtime.meta.kind == DETECTOR and 'boxes' not in dict(found):
        print(
            f'warning: the model finds nothing on the {images} images, so they compare nothing: '
            '--check takes more, and model.test_cfg.score_thr may be too high',
            file=sys.stderr,
        )
    return found, images


def _samples(cfg: Config, meta: Metadata, count: int) -> Iterator[dict]:
    """Samples of the test set; of open sizes, every other one cut to odd sides."""
    try:
        check_data(cfg, 'test')
    except LaunchError as error:
        print(f'compared on made images, as the test set is not usable: {error}', file=sys.stderr)
        size = EXAMPLE if meta.heights[0] != meta.heights[1] else (meta.heights[0], meta.widths[0])
        samples: Iterator = _made(cfg, [size] * count)
    else:
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        samples = (dataset[i] for i in range(min(count, len(dataset))))
    for number, data in enumerate(samples):
        if meta.heights[0] == meta.heights[1]:
            data = _resized(data, meta.heights[0], meta.widths[0])
        elif number % 2:
            data = _cut(data, meta)
        yield data


def _made(cfg: Config, sizes: Sequence[tuple[int, int]]) -> Iterator[dict]:
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        small = torch.rand(1, 3, 12, 16, generator=generator) * 255
        image = nn.functional.interpolate(small, size, mode='bicubic').clamp(0, 255).byte()[0]
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(size))
        sample = Sample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), img_id=number))
        yield dict(inputs=image, data_samples=sample)


def _cut(data: dict, meta: Metadata) -> dict:
    """A sample without its last rows and columns, so that its sides fill no multiples."""
    height, width = data['inputs'].shape[1:]
    height, width = max(height - 5, meta.heights[0]), max(width - 11, meta.widths[0])
    return _with_image(data, data['inputs'][:, :height, :width])


def _resized(data: dict, height: int, width: int) -> dict:
    if tuple(data['inputs'].shape[1:]) == (height, width):
        return data
    image = nn.functional.interpolate(data['inputs'][None].float(), (height, width))[0].byte()
    return _with_image(data, image)


def _with_image(data: dict, image: Tensor) -> dict:
    """A sample with another image, as if that were all of the file."""
    size = tuple(image.shape[1:])
    sample = type(data['data_samples'])(metainfo=data['data_samples'].metainfo)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size)
    sample.set_metainfo(dict(shapes, scale_factor=(1.0, 1.0)))
    return dict(inputs=image, data_samples=sample)


# int8.


def _quantise(program, cfg: Config, meta: Metadata, count: int) -> tuple[object, dict]:
    """Make a quantised OpenVINO model of a graph, and say in the metadata how."""
    model = formats.to_openvino(program, list(meta.outputs))
    images = _calibration(cfg, count)
    before = _measure(model, cfg, meta)
    lost = min(MOST_LOST[key] for key in before)
    after: dict = {}

    def measure(made) -> float:
        after.update(_measure(made, cfg, meta))
        print(f'int8: {_in_words(after)}; float32: {_in_words(before)}', file=sys.stderr)
        return min(after[key] - before[key] for key in before)

    made = quantising.quantise(model, images, measure, -lost)
    after = _measure(made.model, cfg, meta)
    meta.int8 = dict(calibrated_on=len(images), in_float=made.in_float, metrics=after)
    return made.model, dict(float32=before, int8=after)


def _in_words(metrics: dict) -> str:
    return join(f'{key} {value * METRICS[key]:.4g}' for key, value in metrics.items())


def _calibration(cfg: Config, count: int) -> list:
    """Images of the training set, as the test pipeline makes them."""
    training = copy.deepcopy(cfg.train_dataloader.dataset)
    while 'dataset' in training:
        training = training.dataset
    training.pipeline = cfg.test_dataloader.dataset.pipeline
    dataset = DATASETS.build(training)
    quantising.check_count(min(count, len(dataset)))
    step = max(len(dataset) // count, 1)
    chosen = list(range(0, len(dataset), step))[:count]
    images = (dataset[i]['inputs'] for i in track(chosen, len(chosen), 'calibration images'))
    return [image.flip(0)[None].contiguous().numpy() for image in images]


def _measure(model, cfg: Config, meta: Metadata) -> dict[str, float]:
    """The metrics of an OpenVINO model on the validation set, in 0–1."""
    runtime = OpenVino.__new__(OpenVino)
    runtime.path, runtime.threads, runtime.meta = Path('model'), 0, meta
    runtime.compile(model)
    ours = ExportedModel.of(runtime)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for i in track(range(len(dataset)), len(dataset), 'validation images'):
        data = dataset[i]
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        evaluator.process(data_samples=ours.test_step(batch), data_batch=batch)
    metrics = evaluator.evaluate(len(dataset))
    found = {key: float(metrics[key]) / whole for key, whole in METRICS.items() if key in metrics}
    if not found:
        raise LaunchError(
            f'--int8 is judged by one of {join(METRICS)}; the validation of this config gives '
            f'{join(metrics) or "nothing: the model finds nothing"}'
        )
    return found
