"""The configs that the installed toolboxes and this package ship, by the names mim gives them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

SEPARATOR = '::'
OWN = __package__.partition('.')[0]


def config_folder(toolbox: str) -> Path:
    """Return the folder of the configs that a toolbox ships.

    Args:
        toolbox: Import name, ``'mmdet'``, ``'mmseg'`` or ``'mmpoolformer'``.

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
    return [
        f'{toolbox}{SEPARATOR}{path.as_posix()}' for path in paths if '_base_' not in path.parts
    ]


def find_config(name: str) -> Path:
    """Return the file of a config by its name in the zoo, on the classic and maintained stacks.

    mmengine looks ``mmseg::…`` up under a distribution name that only the classic stack has.

    Args:
        name: Such as ``mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py``; the folder and
            the ending may be left out.

    Raises:
        FileNotFoundError: No such toolbox or config, or several of that name; names the nearest.
    """
    toolbox, _, relative = name.partition(SEPARATOR)
    path = config_folder(toolbox) / relative
    if path.is_file():
        return path
    shipped = list_configs(toolbox)
    wanted = relative if relative.endswith('.py') else f'{relative}.py'
    found = [other for other in shipped if other.endswith((f'{SEPARATOR}{wanted}', f'/{wanted}'))]
    if len(found) == 1:
        return config_folder(toolbox) / found[0].partition(SEPARATOR)[2]
    if found:
        raise FileNotFoundError(f'{toolbox} ships several configs {wanted}: {", ".join(found)}')
    near = _nearest(f'{toolbox}{SEPARATOR}{wanted}', shipped)
    raise FileNotFoundError(
        f'{toolbox} ships no config {relative}' + (f'; there is {", ".join(near)}' if near else '')
    )


def _nearest(name: str, shipped: list[str]) -> list[str]:
    """The names most like one, with its folder or, where it has none, without theirs."""
    if '/' in name:
        return get_close_matches(name, shipped, n=3, cutoff=0.5)
    wanted = name.partition(SEPARATOR)[2]
    by_file = {other.rpartition('/')[2]: other for other in shipped}
    return [by_file[near] for near in get_close_matches(wanted, by_file, n=3, cutoff=0.5)]
