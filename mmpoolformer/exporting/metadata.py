"""What a model file says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from ..archs import is_integer, is_number
from ..checkpoints.class_names import are_class_names, are_colours
from ..utils.config_tree import walk
from ..utils.errors import LaunchError, join, printable
from ..version import __version__

KEY = 'mmpoolformer'  # under which the file keeps it
# Files by the name of their format.
SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}
KINDS = DETECTOR, SEGMENTOR, RAW, BACKBONE = 'detector', 'segmentor', 'raw', 'backbone'
# What goes with a kind at least.
OUTPUTS = {DETECTOR: ('boxes', 'scores', 'labels'), SEGMENTOR: ('labels', 'logits')}
OPTIONS = {SEGMENTOR: ('align_corners', 'threshold')}
# What a message offers where a whole model cannot go into a file.
OFFER_RAW = '--raw exports what the first head puts out'
MOST_DIFFERENCES = 5


class ImageSizeError(LaunchError, ValueError):
    """An image of a size that a graph does not take."""


@dataclass
class Metadata:
    """What a model file says about itself.

    Attributes:
        kind: ``'detector'``, ``'segmentor'``, ``'raw'`` or ``'backbone'``.
        classes: Names of the classes.
        palette: A colour ``[r, g, b]`` for each.
        input: What the image has to be, in words.
        outputs: What comes out by name, in words.
        heights: Least and most, ``None`` where there is no bound.
        widths: The same.
        model: The config's ``model``, without where its weights began.
        options: What is done after the graph: ``mask_threshold`` of a detector with masks,
            ``align_corners`` and ``threshold`` of a segmentor.
        int8: How it was quantised; empty for float32.
        versions: Of the programs that made it.
    """

    kind: str
    classes: list[str]
    palette: list[list[int]]
    input: str
    outputs: dict[str, str]
    heights: list
    widths: list
    model: dict
    options: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: dict(mmpoolformer=__version__, torch=torch.__version__)
    )

    def text(self) -> str:
        """As the file keeps it, JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | None, path: Path) -> Metadata:
        """Read it from a file's text.

        Raises:
            LaunchError: The file has none, or another program's.
        """
        problem = LaunchError(
            f'{path} was not written by tools/export.py, or by another version of it: '
            'export the model again'
        )
        try:
            meta = cls(**json.loads(text or ''))
        except (ValueError, TypeError, RecursionError) as error:
            raise problem from error
        if not meta._is_sound():
            raise problem
        return meta

    def _is_sound(self) -> bool:
        """Whether all fields are of their types, and those there that go with the kind."""
        parts = self.model, self.options, self.int8, self.versions
        return (
            self.kind in KINDS
            and are_class_names(self.classes)
            and are_colours(self.palette)
            and len(self.palette) == len(self.classes)
            and isinstance(self.input, str)
            and isinstance(self.outputs, dict)
            and are_class_names([*self.outputs, *self.outputs.values()])
            and set(self.outputs) >= set(OUTPUTS.get(self.kind, ()))
            and all(map(_is_range, (self.heights, self.widths)))
            and all(isinstance(part, dict) for part in parts)
            and set(self.options) >= set(OPTIONS.get(self.kind, ()))
            and ('masks' not in self.outputs or is_number(self.options.get('mask_threshold')))
            and isinstance(self.options.get('align_corners', False), bool)
            and (self.options.get('threshold') is None or is_number(self.options['threshold']))
        )

    def check_outputs(self, outputs: dict[str, np.ndarray], path: Path) -> None:
        """Refuse what a graph puts out if it is no boxes or labels, or not finite.

        Raises:
            LaunchError: Names the output.
        """
        wrong = next((name for name in self.outputs if name not in outputs), None)
        if wrong is None and self.kind == DETECTOR:
            count = len(outputs['boxes']) if outputs['boxes'].ndim else -1
            shapes = dict(boxes=(count, 4), scores=(count,), labels=(count,))
            if 'masks' in outputs:
                shapes['masks'] = (count, *outputs['masks'].shape[-2:])
            sound = {name: outputs[name].shape == shape for name, shape in shapes.items()}
            labels = outputs['labels']
            is_class = np.issubdtype(labels.dtype, np.integer) and (
                ((labels >= 0) & (labels < len(self.classes))).all()
            )
            sound['labels'] = bool(sound['labels'] and is_class)
            wrong = next((name for name, is_sound in sound.items() if not is_sound), None)
        elif wrong is None and self.kind == SEGMENTOR:
            shape = outputs['logits'].shape
            count = 1 if len(self.classes) <= 2 and 1 in shape[1:2] else len(self.classes)
            wrong = None if len(shape) == 4 and shape[:2] == (1, count) and all(shape) else 'logits'
        values = {} if wrong else {name: outputs[name] for name in self.outputs}
        wrong = next((name for name in values if not np.isfinite(values[name]).all()), wrong)
        if wrong is not None:
            shape = list(outputs[wrong].shape) if wrong in outputs else 'nothing'
            raise LaunchError(
                f'{path} puts out {wrong} that are none ({shape}; {len(self.classes)} classes): '
                'export the model again'
            )

    def check_size(self, height: int, width: int, path: Path) -> None:
        """Refuse an image that the graph does not take.

        Raises:
            ImageSizeError: Names the sizes that it takes.
        """
        for side, (least, most) in ((height, self.heights), (width, self.widths)):
            if side < least or (most is not None and side > most):
                raise ImageSizeError(
                    f'{path} takes images of {_range(self.heights)}×{_range(self.widths)} pixels '
                    f'(height×width), not {height}×{width}: resize them, or export with '
                    '--size or --dynamic'
                )

    def check_config(self, cfg: Config, path: Path) -> None:
        """Refuse a config that the file was not made from.

        Raises:
            LaunchError: Names what differs.
        """
        differences = list(_differences(self.model, model_of(cfg)))
        if differences:
            more = ', …' if len(differences) > MOST_DIFFERENCES else ''
            raise LaunchError(
                f'{path} was exported from another config; in the file and in the config: '
                f'{join(differences[:MOST_DIFFERENCES])}{more}. Give the config that it was made '
                'from, or export again'
            )


def _is_range(sides: object) -> bool:
    return (
        isinstance(sides, list)
        and len(sides) == 2
        and is_integer(sides[0])
        and (sides[1] is None or is_integer(sides[1]))
    )


def is_model_file(name: str) -> bool:
    """Whether a path is that of a model file, and not of a checkpoint."""
    return Path(name).suffix in SUFFIXES.values()


def files_of(path: Path) -> list[Path]:
    """The files of a model: OpenVINO's has two."""
    return [path, path.with_suffix('.bin')] if path.suffix == SUFFIXES['openvino'] else [path]


def model_of(cfg: Config) -> dict:
    """The ``model`` of a config as JSON knows it, without what only training reads."""
    model = Config(dict(model=cfg.model)).to_dict()['model']
    for _, node in list(walk(model)):
        for key in ('init_cfg', 'pretrained', 'train_cfg'):
            node.pop(key, None)
    return json.loads(json.dumps(model, default=str))


def _differences(there: Any, here: Any, path: str = 'model') -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            yield from _differences(there.get(key), here.get(key), f'{path}.{key}')
    elif there != here:
        yield printable(f'{path}={there!r} and {here!r}')


def _range(sides: list) -> str:
    least, most = sides
    return str(least) if least == most else f'{least}–{most or "any"}'
