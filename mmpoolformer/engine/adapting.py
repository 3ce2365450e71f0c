"""What the tools that change a user's config share: show the changes, and write them."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.syntax import Syntax

from ..adapt.edit import Change
from ..adapt.zoo import SEPARATOR, config_folder
from ..utils.config_tree import braced, walk
from ..utils.errors import LaunchError, printed
from ..utils.files import replacing
from .checks import refuse_braces, warn_of_unread
from .launch import CONFIG_HELP, find_config_file, read_config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config that is changed, and where the new one is written."""
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('-o', '--out', type=Path, help='write the new config to this .py file')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')


def read_base(args: argparse.Namespace) -> tuple[Path, Config]:
    """Read the config of the command line, once the new one can be written.

    Raises:
        LaunchError: There is none, or something is in the place of the new one.
    """
    if args.out and args.out.suffix != '.py':
        raise LaunchError(f'-o {args.out}: a config file ends in .py')
    if args.out and args.out.exists() and not args.overwrite:
        raise LaunchError(f'{args.out} exists: choose another name, or add --overwrite')
    path = find_config_file(args.config)
    cfg = read_config(path)
    warn_of_unread(cfg, path)
    return path, cfg


def show_and_write(
    args: argparse.Namespace, path: Path, cfg: Config, new: Config, changes: list[Change]
) -> None:
    """Print the differences and their reasons, and write the new config if it was asked for.

    Args:
        args: See :func:`add_config_arguments`.
        path: File of the config that was changed.
        cfg: The config before.
        new: The config after.
        changes: What was changed, and why.

    Raises:
        LaunchError: The file cannot be written.
    """
    _print_diff(cfg, new, args.config, str(args.out or 'changed'))
    for change in changes:
        print(printed(f'- {change}'))
    if args.out:
        inherits = _write(args.config, args.out, path, cfg, new)
        print(
            f'wrote {args.out}' + ('' if inherits else ', complete: its base cannot be named in it')
        )


def _print_diff(cfg: Config, new: Config, old_name: str, new_name: str) -> None:
    texts = cfg.pretty_text.splitlines(), new.pretty_text.splitlines()
    diff = '\n'.join(difflib.unified_diff(*texts, old_name, new_name, lineterm=''))
    if sys.stdout.isatty():
        Console().print(Syntax(diff, 'diff', theme='ansi_dark', background_color='default'))
    else:
        print(diff)


def _write(name: str, out: Path, path: Path, cfg: Config, new: Config) -> bool:
    """Write what differs from the base, or everything where the base cannot be named.

    A file that is replaced may be the base itself.
    """
    refuse_braces(new)
    toolbox = name.split(SEPARATOR)[0] if SEPARATOR in name else None
    if toolbox is None:
        base = os.path.relpath(path, out.parent)
    else:  # mmengine asks for the folder, too
        base = f'{toolbox}{SEPARATOR}{path.relative_to(config_folder(toolbox)).as_posix()}'
    can_name = braced(base) is None
    differing = Config(_difference(cfg.to_dict(), new.to_dict())).pretty_text
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out, suffix='.py') as partial:
            inherits = False
            if can_name and not out.exists():
                partial.write_text(f'_base_ = {base!r}\n\n{differing}')
                inherits = _same_config(partial, new)
            if not inherits:
                partial.write_text(new.pretty_text)
                if not _same_config(partial, new):
                    raise LaunchError(f'{path} holds more than values: it cannot be written')
    except OSError as error:
        raise LaunchError(f'cannot write {out}: {error}') from error
    return inherits


def _same_config(path: Path, cfg: Config) -> bool:
    try:
        written = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception:  # of whatever kind, it is not the same
        return False
    wanted = cfg.to_dict()
    for _, node in (*walk(written), *walk(wanted)):
        node.pop('_scope_', None)  # mmengine marks what is inherited from another package
    return written == wanted


def _difference(old: dict, new: dict) -> dict:
    """What a config that inherits ``old`` must say to become ``new``."""
    if set(old) - set(new):
        return dict(_delete_=True, **new)
    changed = {}
    for key, value in new.items():
        if key not in old:
            changed[key] = value
        elif value != old[key]:
            if isinstance(value, dict) and isinstance(old[key], dict):
                value = _difference(old[key], value)
            elif isinstance(value, dict):
                value = dict(_delete_=True, **value)
            changed[key] = value
    return changed
