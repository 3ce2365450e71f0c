"""Put PoolFormer into an existing mmdet or mmseg config; show the changes, and write them."""

import argparse
import difflib
import os
import sys
import tempfile
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.syntax import Syntax

from mmpoolformer import ARCHS, swap_backbone, swap_changes
from mmpoolformer.archs import known_names
from mmpoolformer.config_tree import walk
from mmpoolformer.launch import CONFIG_HELP, LaunchError, find_config_file, read_config, run
from mmpoolformer.zoo import SEPARATOR


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--arch',
        choices=known_names(),
        default='s12',
        metavar='ARCH',
        help=f'{", ".join(ARCHS)}, or another MetaFormer such as caformer_s18; default: s12',
    )
    parser.add_argument(
        '--checkpoint',
        default='official',
        help='weights to start from: official (the default, trained on ImageNet), none, '
        'a path or a URL',
    )
    parser.add_argument(
        '--keep-optimizer', action='store_true', help='keep the optimizer and its schedule'
    )
    parser.add_argument('-o', '--out', type=Path, help='write the new config to this .py file')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.out and args.out.suffix != '.py':
        raise LaunchError(f'-o {args.out}: a config file ends in .py')
    if args.out and args.out.exists() and not args.overwrite:
        raise LaunchError(f'{args.out} exists: choose another name, or add --overwrite')
    path = find_config_file(args.config)
    cfg = read_config(path)
    options = dict(
        arch=args.arch,
        checkpoint=None if args.checkpoint == 'none' else args.checkpoint,
        keep_optimizer=args.keep_optimizer,
    )
    swapped = swap_backbone(cfg, **options)
    print_diff(cfg, swapped, args)
    for change in swap_changes(cfg, **options):
        print(f'- {change}')
    if args.out:
        inherits = write(args, path, cfg, swapped)
        print(
            f'wrote {args.out}' + ('' if inherits else ', complete: its base cannot be named in it')
        )


def print_diff(cfg, swapped, args):
    lines = difflib.unified_diff(
        cfg.pretty_text.splitlines(),
        swapped.pretty_text.splitlines(),
        args.config,
        str(args.out or f'with {args.arch}'),
        lineterm='',
    )
    diff = '\n'.join(lines)
    if sys.stdout.isatty():
        Console().print(Syntax(diff, 'diff', theme='ansi_dark', background_color='default'))
    else:
        print(diff)


def write(args, path, cfg, swapped):
    """Write what differs from the base, or everything where the base cannot be named.

    A file that is replaced may be the base itself.
    """
    base = args.config if SEPARATOR in args.config else os.path.relpath(path, args.out.parent)
    differing = Config(difference(cfg.to_dict(), swapped.to_dict())).pretty_text
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix='.py', dir=args.out.parent)
    except OSError as error:
        raise LaunchError(f'cannot write {args.out}: {error}') from error
    os.close(handle)
    partial = Path(name)
    try:
        partial.write_text(f'_base_ = {base!r}\n\n{differing}')
        inherits = not args.out.exists() and same_config(partial, swapped)
        if not inherits:
            partial.write_text(swapped.pretty_text)
            if not same_config(partial, swapped):
                raise LaunchError(f'{path} cannot be written as a file: it holds more than values')
        partial.chmod(0o644)
        partial.replace(args.out)
    finally:
        partial.unlink(missing_ok=True)
    return inherits


def same_config(path, cfg):
    try:
        written = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception:  # of whatever kind, it is not the same
        return False
    wanted = cfg.to_dict()
    for _, node in (*walk(written), *walk(wanted)):
        node.pop('_scope_', None)  # mmengine marks what is inherited from another package
    return written == wanted


def difference(old, new):
    """What a config that inherits ``old`` must say to become ``new``."""
    if set(old) - set(new):
        return dict(_delete_=True, **new)
    changed = {}
    for key, value in new.items():
        if key not in old:
            changed[key] = value
        elif value != old[key]:
            if isinstance(value, dict) and isinstance(old[key], dict):
                value = difference(old[key], value)
            elif isinstance(value, dict):
                value = dict(_delete_=True, **value)
            changed[key] = value
    return changed


if __name__ == '__main__':
    run(main)
