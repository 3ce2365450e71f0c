"""Write a recorded graph as a file of a format."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from ..utils.errors import LaunchError, first_line
from ..utils.files import aside
from .extras import require
from .graphs import reason
from .metadata import KEY, OFFER_RAW, Metadata
from .wrappers import IMAGE

OPSET = 18  # of ONNX: TensorRT 10, OpenVINO and ONNX Runtime document all of its operators used


def write(
    program: torch.export.ExportedProgram, names: list[str], path: Path, form: str, meta: Metadata
) -> None:
    """Write a graph to a path, which is lent by :func:`mmpoolformer.utils.files.aside`.

    Args:
        program: The graph.
        names: Of its outputs.
        path: The file.
        form: A key of :data:`~.metadata.SUFFIXES`.
        meta: What the file says about itself.

    Raises:
        LaunchError: The format has no operator for something, or a package is missing.
    """
    WRITERS[form](program, names, path, meta)


def to_onnx(program: torch.export.ExportedProgram, names: list[str]):
    """Translate a graph; returns ONNX's ``ModelProto``."""
    require('onnxscript')
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=names,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter raises
        raise LaunchError(
            f'ONNX has no operator for a part of this model: {reason(error)}. {OFFER_RAW}, '
            '--format torch-export all of it'
        ) from error
    return made.model_proto


def to_openvino(program: torch.export.ExportedProgram, names: list[str]):
    """Translate a graph, by way of ONNX; returns ``openvino.Model``."""
    openvino = require('openvino')
    proto = to_onnx(program, names)
    onnx = require('onnx')
    # From memory, OpenVINO's reader of ONNX takes streams of bytes.
    from io import BytesIO

    stream = BytesIO()
    onnx.save(proto, stream)
    stream.seek(0)
    try:
        model = openvino.convert_model(stream)
    except Exception as error:  # of a frontend in C++
        raise LaunchError(
            f'OpenVINO does not read a part of this model: {reason(error)}. --format onnx does '
            f'without it, {OFFER_RAW}'
        ) from error
    _normalise_maps(model)
    return model


def _normalise_maps(model) -> None:
    """Let GroupNorm with one group take ``[B, C, H, W]`` instead of the flattened ``[B, 1, CHW]``.

    As ONNX has it, it is flattened and brought back, for which OpenVINO turns every map from
    channels-last around and back again: 12 to 16 % of the time of PoolFormer-S12.
    """
    import openvino.opset13 as ops

    for norm in model.get_ordered_ops():
        if norm.get_type_name() != 'MVN' or _constant(norm, 1) != [2]:
            continue
        flat = norm.input_value(0).get_node()
        if flat.get_type_name() != 'Reshape' or _constant(flat, 1) != [0, 1, -1]:
            continue
        x = flat.input_value(0)
        backs = [target.get_node() for target in norm.output(0).get_target_inputs()]
        if x.get_partial_shape().rank == 4 and all(_is_back(b, x) for b in backs):
            options = norm.get_attributes()
            made = ops.mvn(
                x, [1, 2, 3], options['normalize_variance'], options['eps'], options['eps_mode']
            )
            for back in backs:
                back.output(0).replace(made.output(0))


def _constant(node, number: int) -> list | None:
    """An input of an operator of OpenVINO's, if it is constant."""
    source = node.input_value(number).get_node()
    return source.data.tolist() if source.get_type_name() == 'Constant' else None


def _is_back(node, x) -> bool:
    """Whether an operator of OpenVINO's brings a flattened map back to the shape of ``x``."""
    if node.get_type_name() != 'Reshape':
        return False
    shape = node.input_value(1).get_node()
    if shape.get_type_name() == 'ShapeOf':
        return shape.input_value(0) == x
    old, new = x.get_partial_shape(), node.get_output_partial_shape(0)
    return old.is_static and new.is_static and old == new


def save_openvino(model, path: Path, meta: Metadata) -> None:
    """Write an OpenVINO model, weights in full precision beside it."""
    model.set_rt_info(meta.text(), [KEY])
    try:
        require('openvino').save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:  # of C++, where Python has an OSError
        raise LaunchError(
            f'{path} cannot be written, is the disk full? {first_line(error)}'
        ) from error


def _write_onnx(program, names, path, meta) -> None:
    onnx = require('onnx')
    proto = to_onnx(program, names)
    onnx.helper.set_model_props(proto, {KEY: meta.text()})
    onnx.save(proto, str(path))


def _write_openvino(program, names, path, meta) -> None:
    save_openvino(to_openvino(program, names), path, meta)


def _write_torch(program, names, path, meta) -> None:
    content = io.BytesIO()  # PyTorch ends the process where a disk is full
    torch.export.save(program, content, extra_files={KEY: meta.text()})
    path.write_bytes(content.getbuffer())


WRITERS: dict[str, Callable] = {
    'onnx': _write_onnx,
    'openvino': _write_openvino,
    'torch-export': _write_torch,
}


@contextmanager
def placed(path: Path):
    """Lend a name beside a model file; afterwards what lies there takes the file's place.

    OpenVINO's weights lie in a second file, which is in its place before the first.
    """
    suffix = path.suffix
    with aside(path, suffix) as partial:
        weights = partial.with_suffix('.bin')
        try:
            yield partial
            if weights.exists():
                weights.replace(path.with_suffix('.bin'))
            partial.replace(path)
        finally:
            weights.unlink(missing_ok=True)


@contextmanager
def _quiet():
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
