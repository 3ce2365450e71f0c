"""Export a trained model as one file for ONNX Runtime, OpenVINO or torch.export, and check it.

Exit code 1, and nothing is written, if the file does not compute what PyTorch does.
"""

import argparse
from pathlib import Path

from mmpoolformer.engine.checks import CfgOptions
from mmpoolformer.engine.export import CALIBRATE, METRICS, export
from mmpoolformer.engine.launch import CONFIG_HELP, LaunchError, load_config, run
from mmpoolformer.exporting.comparing import TOLERANCE, describe
from mmpoolformer.exporting.metadata import BACKBONE, RAW, SUFFIXES, files_of


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('-o', '--out', type=Path, required=True, metavar='MODEL', help='the file')
    parser.add_argument(
        '--format', choices=SUFFIXES, help='default: what the suffix of MODEL stands for'
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='images of this size alone'
    )
    sizes.add_argument(
        '--dynamic', action='store_true', help='images of all sizes (this is the default)'
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        '--raw', action='store_true', help='stop at what the heads put out, before boxes or labels'
    )
    parts.add_argument('--backbone-only', action='store_true', help='the features alone')
    parser.add_argument(
        '--int8',
        action='store_true',
        help='quantise (OpenVINO); parts that cost too much accuracy stay in float',
    )
    parser.add_argument(
        '--calibrate', type=int, metavar='N', help=f'training images for --int8 ({CALIBRATE})'
    )
    parser.add_argument(
        '--check', type=int, default=8, metavar='N', help='images to compare with PyTorch on (8)'
    )
    parser.add_argument(
        '--check-sizes',
        type=size_of,
        nargs='+',
        default=(),
        metavar='HxW',
        help='compare on made images of these sizes too, such as 320x320 800x1333',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=TOLERANCE,
        help=f'largest difference that is accepted, relative (default: {TOLERANCE})',
    )
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='read checkpoints that execute code; only for files whose author you trust',
    )
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)  # nothing is trained
    return parser.parse_args()


def main():
    args = parse_args()
    if args.calibrate is not None and not args.int8:
        raise LaunchError('--calibrate is for --int8: give both, or none')
    report = export(
        load_config(args),
        args.checkpoint,
        args.out,
        args.format or format_of(args.out),
        size=args.size,
        part=RAW if args.raw else BACKBONE if args.backbone_only else 'whole',
        int8=args.int8,
        calibrate=CALIBRATE if args.calibrate is None else args.calibrate,
        check=args.check,
        check_sizes=args.check_sizes,
        tolerance=args.tolerance,
    )
    show(report)


def size_of(text):
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r}: give height and width as 320x480')
    return int(height), int(width)


def format_of(path):
    for form, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return form
    raise LaunchError(f'-o {path}: give a name that ends in {", ".join(SUFFIXES.values())}')


def show(report):
    meta = report.meta
    print(f'image: {meta.input}; height {span(meta.heights)}, width {span(meta.widths)}')
    for name, what in meta.outputs.items():
        print(f'{name}: {what}')
    for kind, metrics in report.metrics.items():
        values = (f'{key} {value * METRICS[key]:.4g}' for key, value in metrics.items())
        print(f'{kind}: {", ".join(values)}')
    if meta.int8:
        print(f'in float32: {", ".join(meta.int8["in_float"]) or "nothing"}')
    print(
        f'largest difference from PyTorch on {report.images} images, relative: '
        f'{describe(report.differences)}'
    )
    for file in files_of(report.path):
        print(f'{file}, {file.stat().st_size / 2**20:.1f} MiB')


def span(sides):
    least, most = sides
    return least if least == most else f'{least} and more' if most is None else f'{least}–{most}'


if __name__ == '__main__':
    run(main)
