"""Prove the Triton kernels on this machine's GPU, measure where they pay, and fill the table.

One command, one step after the other, each in a process of its own and within eight minutes.
Every finding is a line of JSON in OUT/results.jsonl as soon as it is there; at the end come
Markdown tables, in OUT/report.md too. Without a GPU Triton's interpreter takes its place at a
reduced size. See dev/gpu/README.md.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = {
    'correct': 'kernels against the plain definition, float64 and compute-sanitizer',
    'tune': 'time against PyTorch and against the floor; the benchmark and a detector',
    'small': 'sizes of images from which fused blocks pay',
    'pack': 'copy what a machine with PyTorch, NumPy and OpenCV lacks into the folder OUT',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='\n'.join(f'{name}: {what}' for name, what in COMMANDS.items()),
    )
    parser.add_argument('command', choices=COMMANDS)
    parser.add_argument('--steps', nargs='+', help='these alone (default: all)')
    parser.add_argument('--list', action='store_true', help='name the steps and stop')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu'))
    parser.add_argument('--table', type=Path, help='written table (default, on a GPU: the package)')
    parser.add_argument('--packed', type=Path, help='the folder that `pack` made')
    parser.add_argument(
        '--alone', action='store_true', help='all in this process: faster, and one crash ends it'
    )
    args = parser.parse_args()
    if args.packed and not (args.packed / 'mmengine').is_dir():
        parser.error(f'--packed {args.packed}: no folder that `pack` made')
    return args


def prepare(packed: Path | None):
    """Find this repository's modules, those of the folder, and stand-ins for the rest."""
    sys.path[:0] = [str(path) for path in (HERE.parent, HERE, HERE.parent / 'benchmarks')]
    if packed:
        from gpu import stand_ins

        sys.path.insert(0, str(packed.resolve()))
        stand_ins.install()
    import torch

    if not torch.cuda.is_available():
        if os.environ.setdefault('TRITON_INTERPRET', '1') == '1':
            from gpu import interpreter

            interpreter.stand_in()
            interpreter.try_small_maps()
        print("no GPU: Triton's interpreter on the CPU, at a reduced size", flush=True)


def main() -> int:
    args = parse_args()
    if args.command == 'pack':
        sys.path[:0] = [str(HERE.parent), str(HERE)]
        from gpu.pack import pack

        print(f'{args.out}: {pack(args.out) / 1e6:.1f} MB')
        return 0
    prepare(args.packed)
    from gpu import acceptance

    return acceptance.run(args)


if __name__ == '__main__':
    sys.exit(main())
