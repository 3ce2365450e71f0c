"""Put faults into a part of the package, one at a time, and list those that no test notices.

mutmut makes the faults and runs the tests that reach each: `pip install mutmut==3.8.1` first.
It works in a copy of the last commit. Of a part with thousands of faults a sample says the share.
Faults in what an import computes survive always: the package is imported once for all of them.

    python dev/mutate.py checkpoints --sample 100
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Which files of a part are changed, and the tests that are its specification.
PARTS = {
    'archs': (['archs.py'], ['test_archs.py', 'adapt/test_swap.py']),
    'ops': (['ops/*.py'], ['ops', 'models/test_fused.py', 'models/test_backbone.py']),
    'checkpoints': (['checkpoints/*'], ['checkpoints']),
    'swap': (['adapt/swap/*', 'adapt/edit.py'], ['adapt', 'tools/test_swap_backbone.py']),
    'resuming': (
        ['engine/checkpointing.py', 'engine/resum*.py', 'engine/lock.py'],
        [
            *('engine/test_interruptions.py', 'engine/test_resumed_schedule.py'),
            'checkpoints/test_hostile_checkpoints.py',
        ],
    ),
    'datasets': (['datasets/*'], ['datasets', 'tools/test_check_dataset.py']),
}
# What tests read besides the package.
COPIED = [
    *('benchmarks', 'configs', 'demo', 'dev', 'docs', 'requirements', 'tools'),
    *('CHANGELOG.md', 'MANIFEST.in', 'README.md', 'README_zh-CN.md'),
    *('mkdocs.yml', 'model-index.yml', 'setup.py'),
]
# What asks at every call which fault it is cannot be compiled.
LEFT_OUT = 'not while_compiling and not without_a_graph_break and not compiles_without'
# Words of messages may change.
LEFT_ALONE = [r'raise \w+', r'warn\(', 'logger', 'print']
KILLED, SURVIVED = 'killed', 'survived'
# By the exit code that mutmut notes.
RESULTS = {0: SURVIVED, 1: KILLED, 3: KILLED, 5: 'no tests', 33: 'no tests', None: 'not tried'}
RESULTS |= dict.fromkeys((24, -24, 36, 152, 255), 'timeout')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('--sample', type=int, metavar='N', help='faults (default: all)')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'mutation')
    return parser.parse_args()


def main():
    args = parse_args()
    if find_spec('mutmut') is None:
        sys.exit('error: mutmut is not installed: pip install mutmut==3.8.1')
    copy = args.work_dir / f'{args.part}-{commit()}'
    if not copy.exists():
        make_copy(copy, *PARTS[args.part])
    # Makes the faults and sees which test reaches which; that it then finds no such fault is meant.
    mutmut(copy, 'run', '--max-children', args.jobs, 'none', stdout=subprocess.DEVNULL)
    faults = sorted(results_of(copy))
    if not faults:
        sys.exit(f'error: mutmut made no faults; see what it says in {copy}')
    chosen = random.Random(args.seed).sample(faults, min(args.sample or len(faults), len(faults)))
    ended = mutmut(copy, 'run', '--max-children', args.jobs, *chosen).returncode
    report(copy, chosen, len(faults))
    if ended:
        sys.exit(f'error: mutmut ended with {ended}; the same command goes on')


def commit() -> str:
    command = ['git', 'rev-parse', '--short', 'HEAD']
    return subprocess.check_output(command, cwd=ROOT, text=True).strip()


def make_copy(copy: Path, files: list[str], tests: list[str]):
    """Clone the last commit and tell mutmut what to change and what to run."""
    partial = copy.with_name(f'{copy.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(['git', 'clone', '--quiet', ROOT, partial], check=True)
    options = {
        'source_paths': ['mmpoolformer'],
        'only_mutate': [f'mmpoolformer/{name}' for name in files],
        'also_copy': COPIED,
        'do_not_mutate_patterns': LEFT_ALONE,
        'process_isolation': 'forkserver',
        'pytest_add_cli_args': ['-p', 'no:cacheprovider', '-k', LEFT_OUT],
        'pytest_add_cli_args_test_selection': [f'tests/{name}' for name in tests],
    }
    with (partial / 'pyproject.toml').open('a') as file:
        file.write('\n[tool.mutmut]\n')
        file.writelines(f'{key} = {json.dumps(value)}\n' for key, value in options.items())
    partial.rename(copy)


def mutmut(copy: Path, *args, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'mutmut', *map(str, args)], cwd=copy, **options)


def results_of(copy: Path) -> dict[str, int | None]:
    """Faults with the exit codes of their tests."""
    found = {}
    for path in (copy / 'mutants').rglob('*.meta'):
        found.update(json.loads(path.read_text())['exit_code_by_key'])
    return found


def report(copy: Path, chosen: list[str], count: int):
    codes = results_of(copy)
    results = {name: RESULTS.get(codes[name], f'exit code {codes[name]}') for name in chosen}
    for name in (name for name, result in results.items() if result != KILLED):
        print(f'\n{results[name]}: {name}', flush=True)
        mutmut(copy, 'show', name)
    counts = Counter(results.values())
    print(f'\n{counts[KILLED]} of {len(chosen)} faults were killed, of {count} that there are')
    print(', '.join(f'{result}: {number}' for result, number in sorted(counts.items())))


if __name__ == '__main__':
    main()
