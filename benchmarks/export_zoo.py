"""Export one config of every method that runs with PoolFormer, and say what goes into a file.

Of each folder of configs that mmdet and mmseg ship, the first one that swaps and runs is
exported to ONNX with random weights: whole and for all sizes, else whole and for one size, else up
to the outputs of its heads (``--raw``). The export compares with PyTorch, as for users. Each
runs in a process of its own with limits; an interrupted run goes on where it was.
"""

import argparse
import copy
import re
import sys
import tempfile
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch
from common import REPORTS, markdown, write_page
from mmengine.registry import init_default_scope
from zoo import Store, describe, escape, exercise, load, method_of, run_limited, small

from mmpoolformer import SwapError, __version__, export, swap_backbone
from mmpoolformer.adapt.zoo import list_configs
from mmpoolformer.datasets.fit import class_counts
from mmpoolformer.engine.dataset_meta import meta_of_config
from mmpoolformer.exporting.comparing import describe as describe_differences
from mmpoolformer.registry import TOOLBOXES, build_model
from mmpoolformer.utils.config_tree import walk

ARCH = 's12'
ONE_SIZE = (320, 320)
CHECK_SIZES = [(320, 320), (333, 427)]
ALL_SIZES, WHOLE, RAW, NOTHING = 'whole, all sizes', 'whole, one size', '--raw', 'not at all'
RESULTS = ALL_SIZES, WHOLE, RAW, NOTHING
TRIES = 12  # configs of a folder, until one runs
FAST = 'fast-rcnn'  # in names of what finds boxes in proposals from a file, and comes last


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=REPORTS / 'export-zoo.md')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/export-zoo'), help='keeps what is done'
    )
    parser.add_argument('--again', nargs='*', default=(), metavar='METHOD', help='do these anew')
    parser.add_argument('--only', default='', help='methods whose name contains this')
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time')
    parser.add_argument('--seconds', type=float, default=900, help='time limit of a process')
    parser.add_argument('--gigabytes', type=float, default=10, help='memory limit of a process')
    return parser.parse_args()


def main():
    args = parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    for name in TOOLBOXES:  # imported once, and shared by all processes
        import_module(f'{name}.models')
        import_module(f'{name}.datasets')
    methods = {}
    for toolbox in TOOLBOXES:
        for name in list_configs(toolbox):
            methods.setdefault(method_of(name), []).append(name)
    chosen = {method: names for method, names in methods.items() if args.only in method}
    if not chosen:
        sys.exit(f'error: no method has {args.only!r} in its name')
    versions = {name: import_module(name).__version__ for name in (*TOOLBOXES, 'torch')}
    store = Store(args.work_dir, dict(versions, mmpoolformer=__version__, exported=ARCH))
    todo = [item for item in chosen.items() if item[0] not in store or item[0] in args.again]
    limits = dict(jobs=args.jobs, seconds=args.seconds, gigabytes=args.gigabytes)
    for method, result in run_limited('export', export_method, todo, **limits):
        store.add(method, result)
        print(f'{method}: {result_of(result)}: {reason_of(result)}', flush=True)
    rows = [dict(store[method], method=method) for method in methods if method in store]
    write_page(args.out, report(rows, len(methods), versions, store.seconds))
    for result, count in Counter(map(result_of, rows)).items():
        print(f'{result}: {count}')


# Export ------------------------------------------------------------------------------------


def export_method(method, names):
    """Export the first of some configs that swaps and runs: how far, how exact, and why no further.

    Returns:
        The ``config``, the ``result``, the ``differences`` and for what was tried before the
        ``reasons``; without a config that runs, ``skipped`` says why.
    """
    skipped = 'no config swaps'
    complete_first = sorted(names, key=lambda name: FAST in name)
    for name in complete_first[:TRIES]:
        try:
            cfg = runnable(name)
        except SwapError as error:
            skipped = error.reason
        except Exception as error:
            skipped = describe(error)
        else:
            return dict(config=name, **export_config(cfg))
    return dict(skipped=skipped)


def runnable(name):
    """A config after the swap, small, of which one image was seen to go through the model."""
    cfg = small(swap_backbone(load(name), ARCH, checkpoint=None))
    exercise(cfg, train=False)
    for _, node in walk(cfg.model):  # random weights find something, too
        if 'score_thr' in node:
            node['score_thr'] = 0.0
    if cfg.default_scope == 'mmseg':
        cfg.model.test_cfg = dict(mode='whole')
    return cfg


def export_config(cfg):
    reasons = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_random_weights(cfg, Path(folder) / 'random.pth')
        out = Path(folder) / 'model.onnx'
        for result, options in (
            (ALL_SIZES, dict(check_sizes=CHECK_SIZES)),
            (WHOLE, dict(size=ONE_SIZE)),
            (RAW, dict(part='raw', size=ONE_SIZE)),
        ):
            try:
                found = export(cfg.copy(), checkpoint, out, check=1, **options)
            except Exception as error:
                reasons[result] = describe(error)
            else:
                differences = describe_differences(found.differences)
                return dict(result=result, differences=differences, reasons=reasons)
    return dict(result=NOTHING, differences='', reasons=reasons)


def save_random_weights(cfg, path):
    """A checkpoint in whose scores there is something to see, unlike those at the start."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = build_model(copy.deepcopy(cfg.model), cfg.default_scope)  # models of DETR change it
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif 0 < parameter.std() < 0.02:
                parameter *= 0.03 / parameter.std()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=classes_of(cfg))), path)
    return str(path)


def classes_of(cfg):
    """What training writes about the classes: those of the test set, else numbers."""
    if meta_of_config(cfg).get('classes'):
        return {}
    counts = [count.value for count in class_counts(cfg.model)]
    return dict(classes=list(map(str, range(max(counts, default=0)))))


# Report ------------------------------------------------------------------------------------


def result_of(row):
    return row.get('result', 'skipped' if 'skipped' in row else NOTHING)


def reason_of(row):
    """Why it did not go further, in one line."""
    reasons = list((row.get('reasons') or {}).values())
    reason = row.get('skipped') or row.get('error') or (reasons[0] if reasons else '')
    without_remedies = re.sub(r'[.:] -.*', '', reason)
    return re.sub(rf'{tempfile.gettempdir()}/\w+/', '', without_remedies)


def report(rows, methods, versions, seconds):
    tried = [row for row in rows if 'skipped' not in row]
    counts = Counter(map(result_of, tried))
    whole = counts[ALL_SIZES] + counts[WHOLE]
    toolboxes = ' and '.join(f'{name} {versions[name]}' for name in TOOLBOXES)
    table = [
        (
            row['method'],
            (row.get('config') or '').split('/')[-1].removesuffix('.py'),
            result_of(row),
            row.get('differences', ''),
            escape(reason_of(row)),
        )
        for row in rows
        if 'skipped' not in row
    ]
    return [
        '# The zoo as model files',
        '',
        'Made by `benchmarks/export_zoo.py`; do not edit. Of each folder of configs that '
        f'{toolboxes} ship, the first that runs with PoolFormer-{ARCH.upper()} was exported to '
        "ONNX with random weights, `score_thr=0` and of segmentors `mode='whole'`, by "
        '`mmpoolformer.export`, and compared with PyTorch in ONNX Runtime: files for all sizes on '
        'three images with sides of 320 to 461, odd ones too, files for one size at '
        f'{ONE_SIZE[0]}×{ONE_SIZE[1]}. '
        'Differences beyond 0.001 count as a failure. Random weights may give all boxes '
        'of a method one score, so that they change places: that counts as a failure, too.',
        '',
        f'**{whole} of {len(tried)} methods ({100 * whole / max(len(tried), 1):.1f} %) export '
        f'whole**, {counts[ALL_SIZES]} of them for all sizes; {counts[RAW]} more up to the outputs '
        f'of their heads; {counts[NOTHING]} not at all. {len(rows) - len(tried)} of {methods} '
        f'folders hold no config that runs with PoolFormer among the first {TRIES} (Fast R-CNN, '
        'which reads its proposals from a file, is taken where there is nothing else)'
        f'{"" if len(rows) == methods else f", {methods - len(rows)} were not tried"}. '
        f'torch {versions["torch"]}, {seconds / 60:.0f} minutes of processes.',
        '',
        *markdown(('method', 'config', 'exports', 'largest differences', 'why no further'), table),
    ]


if __name__ == '__main__':
    main()
