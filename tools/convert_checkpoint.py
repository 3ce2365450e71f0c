"""Convert a PoolFormer checkpoint of any layout into another one."""

import argparse
import sys
from pathlib import Path

from mmpoolformer.checkpoints import LAYOUTS, CheckpointError, convert, save_state_dict

LAYOUT_CHOICES = [*LAYOUTS, 'safetensors']


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='path, URL, timm://NAME or hf://OWNER/NAME')
    parser.add_argument('dst', type=Path, help='file to write; .safetensors or torch by its name')
    parser.add_argument(
        '--to',
        choices=LAYOUT_CHOICES,
        required=True,
        help='layout to write; safetensors means the official names in a safetensors file',
    )
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    parser.add_argument('--prefix', default='', help='of the keys, if there are several models')
    parser.add_argument('--allow-pickle', action='store_true', help='read files that execute code')
    return parser.parse_args()


def main():
    args = parse_args()
    layout, dst = args.to, args.dst
    if layout == 'safetensors':
        layout = 'official'
        if dst.suffix != '.safetensors':
            sys.exit(f'error: --to safetensors writes a .safetensors file, not {dst}')
    if dst.exists() and not args.force:
        sys.exit(f'error: {dst} exists: remove it or give --force')
    try:
        weights, state_dict = convert(args.src, layout, args.prefix, args.allow_pickle)
        save_state_dict(state_dict, dst)
    except CheckpointError as error:
        sys.exit(f'error: {error}')
    dropped = [part.key(weights.layout) for part in weights.tensors if part.key(layout) is None]
    print(f'{args.src}: {weights.layout}, {weights.arch_name}, {len(weights.tensors)} tensors')
    print(f'{dst}: {layout}, {len(state_dict)} tensors')
    for what, keys in (('no name there for', dropped), ('not of a PoolFormer', weights.others)):
        if keys:
            print(f'left out, {what}: {" ".join(keys[:8])}{" …" if len(keys) > 8 else ""}')


if __name__ == '__main__':
    main()
