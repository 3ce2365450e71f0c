"""Put PoolFormer into an existing mmdet or mmseg config; show the changes, and write them."""

import argparse

from mmpoolformer import ARCHS
from mmpoolformer.adapt.swap import swap
from mmpoolformer.archs import known_names
from mmpoolformer.engine.adapting import add_config_arguments, read_base, show_and_write
from mmpoolformer.engine.launch import run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
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
        help='weights to start from: official (the default, trained on ImageNet-1K), '
        'official:in21k or another variant of ConvFormer and CAFormer, none, a path or a URL',
    )
    parser.add_argument(
        '--keep-optimizer', action='store_true', help='keep the optimizer and its schedule'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    path, cfg = read_base(args)
    checkpoint = None if args.checkpoint == 'none' else args.checkpoint
    swapped = swap(cfg, args.arch, checkpoint, args.keep_optimizer)
    show_and_write(args, path, cfg, *swapped)


if __name__ == '__main__':
    run(main)
