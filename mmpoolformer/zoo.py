"""The configs that the installed toolboxes ship, by the names mim gives them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

SEPARATOR = '::'


def config_folder(toolbox: str) -> Path:
    """Return the folder of the configs that a toolbox ships.

    Args:
        toolbox: Import name, ``'mmdet'`` or ``'mmseg'``.

    Raises:
        FileNotFoundError: The toolbox is not installed, or without its configs.
    """
    spec = find_spec(toolbox)
    if spec is None:
        raise FileNotFoundError(f'{toolbox} is not installed, so its configs are not here')
    package = Path(spec.origin).parent
    for folder in (package / '.mim' / 'configs', package.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f'{toolbox} is installed without its configs: {package}/.mim/configs')


def list_configs(toolbox: str) -> list[str]:
    """Return the names of a toolbox's configs, such as ``mmdet::atss/atss_r50_fpn_1x_coco.py``.

    Raises:
        FileNotFoundError: See :func:`config_folder`.
    """
    folder = config_folder(toolbox)
    paths = sorted(path.relative_to(folder) for path in folder.glob('*/**/*.py'))
    return [f'{toolbox}{SEPARATOR}{path.as_posix()}' for path in paths if path.parts[0] != '_base_']


def find_config(name: str) -> Path:
    """Return the file of a config by its name in the zoo, on the classic and maintained stacks.

    mmengine looks ``mmseg::…`` up under a distribution name that only the classic stack has.

    Args:
        name: Such as ``mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py``.

    Raises:
        FileNotFoundError: No such toolbox or config; names the nearest.
    """
    toolbox, _, relative = name.partition(SEPARATOR)
    path = config_folder(toolbox) / relative
    if not path.is_file():
        near = get_close_matches(name, list_configs(toolbox), n=3, cutoff=0.5)
        raise FileNotFoundError(
            f'{toolbox} ships no config {relative}'
            + (f'; there is {", ".join(near)}' if near else '')
        )
    return path
