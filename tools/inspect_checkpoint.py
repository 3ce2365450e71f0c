"""Say what a PoolFormer checkpoint holds: its layout, architecture and other contents."""

import argparse
import sys

from mmpoolformer.checkpoints import CheckpointError, inspect


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='path, URL, timm://NAME or hf://OWNER/NAME')
    parser.add_argument('--prefix', default='', help='of the keys, if there are several models')
    parser.add_argument('--allow-pickle', action='store_true', help='read files that execute code')
    args = parser.parse_args()
    try:
        print(inspect(args.file, args.prefix, args.allow_pickle))
    except CheckpointError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
