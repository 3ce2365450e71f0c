"""Run a model file."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from ..utils.errors import LaunchError, first_line, join
from .extras import require
from .metadata import KEY, SUFFIXES, Metadata, files_of
from .wrappers import IMAGE

CONSTANTS = ('const', 'constant')  # by both names OpenVINO takes them, in any case
DEEPEST = 100  # OpenVINO walks a file by recursion
# Of OpenVINO's types of constants.
BITS = dict(f64=64, f32=32, f16=16, bf16=16, f8e4m3=8, f8e5m2=8, boolean=8, nf4=4)
BITS |= {f'{sign}{bits}': bits for sign in 'iu' for bits in (4, 8, 16, 32, 64)}


class Runtime:
    """A model file that is loaded; one class for each format.

    Args:
        path: The file.
        threads: Of the processor; 0 leaves it to the runtime.
    """

    def __init__(self, path: Path, threads: int = 0):
        self.path, self.threads = path, threads
        self.meta = Metadata.read(self.load(), path)

    def load(self) -> str | None:
        """Load the file; returns what it says about itself."""
        raise NotImplementedError

    def compute(self, image: np.ndarray) -> list[np.ndarray]:
        """Run the graph."""
        raise NotImplementedError

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model.

        Args:
            image: As the metadata say: pixels in RGB, uint8 ``[1, 3, H, W]``; float32, normalised,
                for a backbone.

        Returns:
            The outputs by name.

        Raises:
            LaunchError: The graph does not take this image, the runtime fails at it, or it puts
                out something else than it says.
        """
        is_of_type = self.meta.input.startswith(str(image.dtype))
        if image.ndim != 4 or image.shape[:2] != (1, 3) or not is_of_type:
            raise LaunchError(
                f'an image is {self.meta.input}; this is {image.dtype} {list(image.shape)}'
            )
        height, width = image.shape[2:]
        self.meta.check_size(height, width, self.path)
        try:
            outputs = self.compute(image)
        except Exception as error:  # of runtimes in C++, at sizes that an operator does not take
            raise LaunchError(
                f'{type(self).__name__} fails on an image of {height}x{width}: '
                f'{first_line(error)}. tools/export.py with --size makes a file for one size, '
                f'and --format takes another runtime of {join(SUFFIXES)}'
            ) from error
        found = dict(zip(self.meta.outputs, outputs))
        self.meta.check_outputs(found, self.path)
        return found


class OnnxRuntime(Runtime):
    """An ONNX file in ONNX Runtime."""

    def load(self) -> str | None:
        ort = require('onnxruntime')
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            str(self.path), options, providers=['CPUExecutionProvider']
        )
        return self.session.get_modelmeta().custom_metadata_map.get(KEY)

    def compute(self, image: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {IMAGE: image})


class OpenVino(Runtime):
    """An OpenVINO file. It computes in float32, also where the processor has bfloat16."""

    precision = 'f32'

    def load(self) -> str | None:
        check_constants(self.path)
        openvino = require('openvino')
        model = openvino.Core().read_model(str(self.path))
        self.compile(model)
        return str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None

    def compile(self, model) -> None:
        """Make a model of OpenVINO's ready to run."""
        options = {'INFERENCE_PRECISION_HINT': self.precision}
        if self.threads:
            options['INFERENCE_NUM_THREADS'] = self.threads
        self.compiled = require('openvino').Core().compile_model(model, 'CPU', options)

    def compute(self, image: np.ndarray) -> list[np.ndarray]:
        return list(self.compiled(image).values())


def check_constants(path: Path) -> None:
    """Refuse an OpenVINO file whose constants are larger than its weights: it would read beyond.

    Raises:
        ValueError: Names the constant.
    """
    available = path.with_suffix('.bin').stat().st_size
    depth = 0
    for event, layer in ElementTree.iterparse(path, ('start', 'end')):
        depth += 1 if event == 'start' else -1
        if depth > DEEPEST:
            raise ValueError(f'it is more than {DEEPEST} elements deep')
        if event == 'start':
            continue
        if '{' in ''.join((layer.tag, *layer.attrib)):  # by which OpenVINO would find others
            raise ValueError(f'{layer.tag!a} is in a namespace')
        if layer.tag != 'layer' or layer.get('type', '').lower() not in CONSTANTS:
            continue
        data = layer.find('data')
        fields = {} if data is None else data.attrib
        sides = [int(side) for side in fields.get('shape', '').split(',') if side.strip()]
        bits = BITS.get(fields.get('element_type'))
        size, offset = int(fields.get('size', -1)), int(fields.get('offset', -1))
        needed = math.prod(sides) * (bits or 0) // 8
        if (
            bits is None
            or 'value' in fields  # in the place of what the weights have
            or min(sides, default=0) < 0
            or offset < 0
            or not needed <= size <= available - offset
        ):
            raise ValueError(f'the constant {layer.get("name")!a} is not as large as it says')


class TorchExport(Runtime):
    """A graph of ``torch.export``."""

    def load(self) -> str | None:
        import torchvision  # noqa: F401 - NMS and RoIAlign are its operators

        extra = {KEY: ''}
        self.module = torch.export.load(self.path, extra_files=extra).module()
        return extra[KEY]

    def compute(self, image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in self.module(torch.from_numpy(image))]


RUNTIMES = {'onnx': OnnxRuntime, 'openvino': OpenVino, 'torch-export': TorchExport}


def open_model(name: str | Path, threads: int = 0, allow_pickle: bool = False) -> Runtime:
    """Load a model file.

    Args:
        name: Its path; the suffix says what it is.
        threads: Of the processor; 0 leaves it to the runtime.
        allow_pickle: Read ``.pt2`` files, which may execute code.

    Raises:
        LaunchError: There is no such file, its runtime is missing or refuses it, or it was not
            written by this package.
    """
    path = Path(name)
    by_suffix = {suffix: form for form, suffix in SUFFIXES.items()}
    if path.suffix not in by_suffix:
        raise LaunchError(f'{path} is no model file: they end in {join(by_suffix)}')
    if not path.is_file():
        raise LaunchError(f'model file not found: {path}. tools/export.py makes one')
    form = by_suffix[path.suffix]
    for file in files_of(path):
        if not file.is_file():
            raise LaunchError(f'{file} is missing: {path} has its weights there')
    if form == 'torch-export' and not allow_pickle:
        raise LaunchError(
            f'{path}: PyTorch reads such files with pickle, which may execute code. '
            '--allow-pickle is for files whose author you trust'
        )
    try:
        return RUNTIMES[form](path, threads)
    except LaunchError:
        raise
    except Exception as error:  # of runtimes in C++, for broken files and unknown operators
        raise LaunchError(
            f'{form} cannot load {path}: {_what_it_says(error)}. Export it again, or take another '
            f'--format of {join(SUFFIXES)}'
        ) from error


def _what_it_says(error: Exception) -> str:
    """The first line of a runtime's message that says something."""
    lines = [line for line in str(error).splitlines() if not line.startswith('Exception from')]
    return first_line('\n'.join(lines))
