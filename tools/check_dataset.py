"""Find what is wrong with the data sets of a config, before a long run does.

Exit code 1 if anything would stop training or train on wrong numbers.
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmpoolformer.datasets import ERROR, check_config
from mmpoolformer.engine.checks import CfgOptions
from mmpoolformer.engine.launch import CONFIG_HELP, find_config_file, override, read_config, run
from mmpoolformer.utils.errors import LaunchError, printable
from mmpoolformer.utils.progress import track

EXAMPLES = 3


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='processes that read images'
    )
    parser.add_argument('--out', type=Path, help='write every problem here, one a line')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.workers < 0:
        raise LaunchError(f'--workers {args.workers}: 0 reads in this process, more in others')
    if args.out:
        write_problems(args.out, [])  # before the images are read, which takes a while
    cfg = read_config(find_config_file(args.config))
    override(cfg, args.cfg_options)
    problems = list(check_config(cfg, args.workers, track))
    if args.out:
        write_problems(args.out, problems)
    show_table(problems, args.out)
    if any(problem.level == ERROR for problem in problems):
        sys.exit(1)


def write_problems(path, problems):
    lines = ['\t'.join(map(printable, problem)) + '\n' for problem in problems]
    try:
        path.write_text(''.join(lines), errors='backslashreplace')
    except OSError as error:
        raise LaunchError(f'--out {path} cannot be written: {error}') from error


def show_table(problems, out):
    kinds = defaultdict(list)
    for problem in sorted(problems, key=lambda problem: problem.level != ERROR):
        kinds[problem.level, problem.kind].append(problem)
    if not kinds:
        print('no problems found')
        return
    table = Table('level', 'problem', 'count', 'for example', title='data sets')
    for (level, kind), members in kinds.items():
        examples = '\n'.join(printable(f'{p.where}: {p.detail}') for p in members[:EXAMPLES])
        table.add_row(level, kind, str(len(members)), Text(examples))  # no markup in names
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    errors = sum(problem.level == ERROR for problem in problems)
    where = f'; all of them are in {out}' if out else '; --out FILE lists all of them'
    print(f'{errors} errors, {len(problems) - errors} warnings{where}')


if __name__ == '__main__':
    run(main)
