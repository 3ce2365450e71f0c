"""Eight bits for weights and maps, by NNCF; parts that cost accuracy stay in float."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from ..utils.errors import LaunchError, first_line
from .extras import require

FEWEST = 16  # images from which the ranges of maps are taken
LAYERS = ('Convolution', 'GroupConvolution', 'ConvolutionBackpropData', 'MatMul')
OTHER = 'unnamed'


class Quantised(NamedTuple):
    """A quantised model.

    Attributes:
        model: OpenVINO's.
        metric: Of the quantised model.
        in_float: The parts that stayed in float32.
    """

    model: object
    metric: float
    in_float: list[str]


def quantise(model, images: list, measure: Callable[[object], float], least: float) -> Quantised:
    """Quantise an OpenVINO model after training.

    All layers first. While the measured metric is less than asked for, the part of the model that
    brings most of it back stays in float32.

    Args:
        model: An ``openvino.Model``.
        images: Inputs of the model, at least :data:`FEWEST`.
        measure: Measures an ``openvino.Model``.
        least: The metric that is asked for.

    Raises:
        LaunchError: Too few images, no NNCF, or nothing is left to quantise.
    """
    check_count(len(images))
    parts = parts_of(model)
    in_float: list[str] = []
    found = _attempt(model, images, measure, parts, in_float)
    while found.metric < least:
        rest = [part for part in parts if part not in in_float]
        if len(rest) <= 1:
            raise LaunchError(
                f'int8 has {found.metric:.4f} where {least:.4f} is asked for, and no part of the '
                'model is left to quantise: --calibrate with more images, or leave out --int8'
            )
        tries = [_attempt(model, images, measure, parts, [*in_float, part]) for part in rest]
        found = max(tries, key=lambda attempt: attempt.metric)
        in_float = found.in_float
    return found


def check_count(count: int) -> None:
    """Refuse a calibration set that does not show the ranges of the maps.

    Raises:
        LaunchError: Names how many images it takes.
    """
    if count < FEWEST:
        raise LaunchError(
            f'--calibrate: {count} images are too few to know the ranges of the maps: give at '
            f'least {FEWEST}; 64 and more are usual'
        )


def parts_of(model) -> dict[str, list[str]]:
    """The layers of a model by part: stages of the backbone, the neck, the heads."""
    parts: dict[str, list[str]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() in LAYERS:
            parts.setdefault(_part(_weight_name(op)), []).append(op.get_friendly_name())
    return parts


def _weight_name(op) -> str:
    """The name of a layer's weight, behind the reshapes that may lie between."""
    node = op.input_value(1).get_node()
    while node.get_type_name() != 'Constant' and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_friendly_name()


def _part(name: str) -> str:
    """``model.backbone.network.2.0.mlp.fc1.weight`` is of ``backbone.network.2``."""
    names = name.removeprefix('model.').split('.')
    if len(names) < 2:
        return OTHER
    return '.'.join(names[: 3 if names[1] == 'network' else 2 if names[0] == 'backbone' else 1])


def _attempt(model, images, measure, parts, in_float) -> Quantised:
    nncf = require('nncf')
    nncf.set_log_level(logging.ERROR)
    names = [name for part in in_float for name in parts[part]]
    try:
        made = nncf.quantize(
            model.clone(),
            nncf.Dataset(images),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=names),
        )
    except Exception as error:  # whatever NNCF raises
        raise LaunchError(
            f'NNCF cannot quantise this model: {first_line(error)}. Leave out --int8'
        ) from error
    return Quantised(made, measure(made), list(in_float))
