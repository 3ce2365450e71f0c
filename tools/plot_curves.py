"""Draw how models learned: the curves of one run, or of several beside each other."""

import argparse
from pathlib import Path

from mmpoolformer.engine.curves import PICTURE, draw, panels_of, panels_of_keys
from mmpoolformer.engine.launch import run
from mmpoolformer.engine.scalars import read_runs


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', type=Path, metavar='RUN', help='work dir of a training, or scalars.json'
    )
    parser.add_argument(
        '-o',
        '--out',
        type=Path,
        help=f'picture, .png or .pdf or .svg (default: {PICTURE} in the work dir of one run, '
        'here for several)',
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help='what to draw, such as loss_cls lr coco/bbox_mAP (default: one run, all losses and '
        'metrics; several, the whole loss, the main metrics and the learning rate)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    runs = read_runs(args.runs)
    if len(runs) == 1 and args.keys is None:
        panels, title = panels_of(runs[0]), runs[0].name
    else:
        panels = panels_of_keys(runs, args.keys)
        title = runs[0].name if len(runs) == 1 else f'{len(runs)} runs'
    out = args.out
    if out is None:
        folder = args.runs[0] if len(runs) == 1 else Path()
        out = (folder if folder.is_dir() else folder.parent) / PICTURE
    draw(panels, out, title)
    print(out)


if __name__ == '__main__':
    run(main)
