"""Put your own images and annotations into an mmdet or mmseg config; show the changes.

Detection: a COCO file, whose categories become the classes, or a folder of Pascal VOC or YOLO
files. Segmentation: a folder of label maps and a text file with the classes, one a line.
"""

import argparse

from mmpoolformer.adapt.own_data import adapt
from mmpoolformer.archs import known_names
from mmpoolformer.engine.adapting import add_config_arguments, read_base, show_and_write
from mmpoolformer.engine.launch import run


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--images', required=True, help='folder of the training images')
    parser.add_argument(
        '--annotations',
        required=True,
        help='COCO file, folder of Pascal VOC or YOLO files, or of label maps (segmentation)',
    )
    parser.add_argument(
        '--val-images',
        help='folder of the validation images, with --val-annotations; label maps need it, '
        'boxes where both files name the same images (default: --images)',
    )
    parser.add_argument(
        '--val-annotations',
        help='as --annotations; without it, a part of the training set is taken, image by image, '
        'and both lists are written beside the annotations',
    )
    parser.add_argument(
        '--val-share', type=float, default=0.2, help='that part of the images (default: 0.2)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the choice (default: 0)')
    parser.add_argument(
        '--classes',
        help='text file with the classes, in the order of their labels, or a data.yaml '
        '(segmentation, YOLO; optional with Pascal VOC)',
    )
    parser.add_argument(
        '--reduce-zero-label',
        action='store_true',
        help='segmentation: label 0 is no class, and label k is class k - 1',
    )
    parser.add_argument(
        '--ignore-index', type=int, default=255, help='segmentation: ignored label (default: 255)'
    )
    parser.add_argument(
        '--image-size',
        type=int,
        help='longer side of the images (segmentation: of the crops), a multiple of 32; all sizes '
        "follow in proportion (default: the config's)",
    )
    parser.add_argument('--batch-size', type=int, help="per process (default: the config's)")
    parser.add_argument(
        '--epochs', type=int, help="(default: the config's, but at least 1,000 steps)"
    )
    parser.add_argument(
        '--swap-backbone',
        choices=known_names(),
        metavar='ARCH',
        help='put this PoolFormer or MetaFormer in, too, as tools/swap_backbone.py does',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    path, cfg = read_base(args)
    options = vars(args).copy()
    for name in ('config', 'out', 'overwrite', 'images', 'annotations'):
        del options[name]
    adapted = adapt(
        cfg, args.images, args.annotations, arch=options.pop('swap_backbone'), **options
    )
    show_and_write(args, path, cfg, *adapted)


if __name__ == '__main__':
    run(main)
