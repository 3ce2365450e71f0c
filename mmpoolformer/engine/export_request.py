"""What an export is refused for before it takes time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from ..exporting import quantising
from ..exporting.extras import require, require_exporter
from ..exporting.metadata import BACKBONE, SUFFIXES, files_of, is_model_file
from ..exporting.wrappers import WHOLE
from ..utils.config_tree import walk
from ..utils.errors import LaunchError, join
from .checks import check_data, check_work_dir

PACKAGES = {
    'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
    'openvino': ['onnx', 'onnxscript', 'openvino'],
    'torch-export': [],
}
LEAST_SIDE = 32  # the stride of the last map


def check(cfg, checkpoint, path, form, part, int8, calibrate, images) -> None:
    """Refuse what cannot be done; see :func:`.export.export` for the arguments."""
    require_exporter()
    _check_place(path, checkpoint)
    if form not in SUFFIXES:
        raise LaunchError(f'--format {form}: there are {join(SUFFIXES)}')
    if path.suffix != SUFFIXES[form]:
        raise LaunchError(f'-o {path}: a file of {form} ends in {SUFFIXES[form]}')
    if images < 1:
        raise LaunchError(f'--check {images}: at least 1 image, or nobody knows what the file does')
    for package in PACKAGES[form]:
        require(package)
    if int8:
        if form != 'openvino' or part != 'whole':
            raise LaunchError('--int8 takes a whole model and --format openvino')
        require('nncf')
        quantising.check_count(calibrate)
        for phase in ('train', 'test'):
            check_data(cfg, phase)
    _check_colours(cfg, part)
    if part == 'whole' and cfg.default_scope not in WHOLE:
        raise LaunchError(f'default_scope={cfg.default_scope!r}: {join(WHOLE)} have whole models')
    check_work_dir(path.parent)


def _check_colours(cfg: Config, part: str) -> None:
    """Refuse images whose order of colours the comparison with PyTorch would not notice."""
    for at, node in walk(cfg.get('test_dataloader') or {}, ('test_dataloader',)):
        if node.get('imdecode_backend') == 'tifffile':
            raise LaunchError(
                f"{'.'.join(map(str, at))}.imdecode_backend='tifffile' loads RGB, and a file is "
                "made for loaders of BGR: train with 'cv2' or 'pillow' to export"
            )
    if part != BACKBONE and (cfg.model.get('data_preprocessor') or {}).get('rgb_to_bgr'):
        raise LaunchError(
            'data_preprocessor.rgb_to_bgr=True asks for loaders of RGB, and a file is made for '
            'those of BGR: --backbone-only takes such models'
        )


def _check_place(path: Path, checkpoint: str) -> None:
    """Refuse to write over what is no model file of the same name."""
    if is_model_file(checkpoint):
        raise LaunchError(f'{checkpoint} is a model file: give the checkpoint that it came from')
    for file in files_of(path):
        if file.is_dir():
            raise LaunchError(f'-o {path}: {file} is a folder')
        if file.resolve() == Path(checkpoint).resolve():
            raise LaunchError(f'-o {path} would replace {checkpoint}: give another name')
        if file != path and file.exists() and not path.exists():
            raise LaunchError(
                f'-o {path} would replace {file}, which belongs to another file: give another name'
            )


def check_sizes(sizes: Sequence[tuple[int, int]], only: tuple[int, int] | None) -> None:
    """Refuse sizes that no backbone takes, and others than the only one of a file."""
    for size in (*sizes, *([only] if only else ())):
        if min(size) < LEAST_SIDE:
            raise LaunchError(
                f'{_by(size)}: sides have {LEAST_SIDE} pixels at least, the stride of the last map'
            )
    others = [size for size in sizes if only and tuple(size) != tuple(only)]
    if others:
        raise LaunchError(
            f'--check-sizes {_by(others[0])}: with --size the file takes {_by(only)} alone'
        )


def _by(size: tuple[int, int]) -> str:
    return 'x'.join(map(str, size))
