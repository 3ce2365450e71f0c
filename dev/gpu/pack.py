"""Pack what a machine with PyTorch, NumPy and OpenCV lacks, as Python files of under 20 MB.

mmcv without its compiled operations, mmdet without the copy of its configs, and the pure
Python modules that they import. What is compiled in the rest has stand-ins
(:mod:`gpu.stand_ins`), so that the folder serves every Python from 3.10 on.
"""

import shutil
from importlib.metadata import distribution, packages_distributions
from pathlib import Path, PurePath

from mmpoolformer.utils.files import replacing

MODULES = (
    'mmengine', 'mmcv', 'mmdet', 'addict', 'termcolor', 'terminaltables', 'yapf', 'platformdirs',
    'rich', 'markdown_it', 'mdurl', 'pygments', 'yaml', 'packaging', 'tqdm', 'six',
)  # fmt: skip
MOST_BYTES = 20e6
LEFT_OUT = {'.mim', 'csrc', '__pycache__', 'bin', '..'}


def pack(folder: Path) -> int:
    """Copy the modules of this environment into a folder, whole or not at all.

    Args:
        folder: Where to; must not be there yet.

    Returns:
        Bytes in it.

    Raises:
        RuntimeError: The folder is there, a module is not installed, or all are more than
            ``MOST_BYTES``.
    """
    if folder.exists():
        raise RuntimeError(f'{folder} is there already: remove it or name another one')
    known = packages_distributions()
    missing = [name for name in MODULES if name not in known]
    if missing:
        raise RuntimeError(f'not in this environment: {", ".join(missing)}; run `make setup`')
    files = {
        file: distribution(name).locate_file(file)
        for module in MODULES
        for name in known[module]
        for file in distribution(name).files
        if _belongs(file)
    }
    size = sum(path.stat().st_size for path in files.values())
    if size > MOST_BYTES:
        raise RuntimeError(f'{size / 1e6:.0f} MB, more than {MOST_BYTES / 1e6:.0f}')
    with replacing(folder) as target:
        for file, path in files.items():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / file)
    return size


def _belongs(file: PurePath) -> bool:
    return not LEFT_OUT & set(file.parts) and file.suffix not in ('.so', '.pyc')
