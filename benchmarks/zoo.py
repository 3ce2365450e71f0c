"""Swap the backbone of every config that mmdet and mmseg ship, build it, run it, and report.

Of the share are all configs but fragments, plain ViTs, U-Nets and what returns no map of stride 4,
8, 16 or 32, which is measured; what a toolbox cannot run with its own backbone counts as not run.

Each config is parsed and swapped, each distinct model that comes out is built and run once on a
small random batch, and one model per method folder is trained for one step, all in processes
of their own with a time and a memory limit. An interrupted run goes on where it was.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from common import REPORTS, markdown, write_page
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from rich.progress import TextColumn
from stand_ins import TEXTS, mend_grounding_dino, put_stand_ins, tiny_bert

from mmpoolformer import ARCHS, PoolFormer, SwapError, __version__, swap_backbone
from mmpoolformer.adapt.swap.strides import strides_of
from mmpoolformer.adapt.zoo import config_folder, find_config, list_configs
from mmpoolformer.registry import TOOLBOXES, build_model
from mmpoolformer.utils.config_tree import unsync_batch_norms, walk
from mmpoolformer.utils.progress import Bars

# Sides of the random images. Below, SSD's last maps vanish and DINO finds too few positions.
SIDES = {'mmdet': 320, 'mmseg': 128}
RUNS, REFUSED, FAILS, FAULT = 'runs', 'refused', 'fails', "toolbox's fault"
PYRAMID, PLAIN, UNET, FRAGMENT, FINER = 'pyramid', 'plain ViT', 'U-Net', 'fragment', 'finer'
PLAIN_VITS = ('VisionTransformer', 'BEiT', 'MAE')
CLIPS = ('MultimodalEncoderDecoder',)  # their image branch is a plain ViT
# Packages that some models need and the toolboxes do not require: trackers, GLIP.
OPTIONAL = ('lap', 'mmpretrain', 'transformers')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', choices=list(ARCHS), default='s12')
    parser.add_argument('--out', type=Path, default=REPORTS / 'zoo.md')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/zoo'), help='keeps what is done so far'
    )
    parser.add_argument('--fresh', action='store_true', help='forget what is done so far')
    parser.add_argument('--only', default='', help='configs whose name contains this')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes at a time')
    parser.add_argument('--seconds', type=float, default=120, help='time limit of a process')
    parser.add_argument('--gigabytes', type=float, default=8, help='memory limit of a process')
    return parser.parse_args()


def main():
    args = parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    toolboxes = [import_module(name) for name in TOOLBOXES]
    for name in TOOLBOXES:  # imported once, and shared by all processes
        import_module(f'{name}.models')
        import_module(f'{name}.datasets')
    tiny_bert()
    names = [name for toolbox in TOOLBOXES for name in list_configs(toolbox) if args.only in name]
    if not names:
        sys.exit(f'error: no config has {args.only!r} in its name')
    versions = {module.__name__: module.__version__ for module in (*toolboxes, torch)}
    versions |= {name: version_of(name) for name in OPTIONAL}
    started = time.time()
    store = Store(args.work_dir, dict(versions, mmpoolformer=__version__, arch=args.arch))
    if args.fresh:
        store.clear()
    limits = dict(jobs=args.jobs, seconds=args.seconds, gigabytes=args.gigabytes)

    todo = [name for name in names if name not in store]
    measure(todo)
    for name, result in run_limited('swap', swap, [(n, args.arch) for n in todo], **limits):
        store.add(name, result)

    swapped = {name: store[name]['model'] for name in names if 'model' in store[name]}
    first_of_method = {}
    # GLIP's configs for pretraining have no loss that boxes can be trained with.
    for name in sorted(swapped, key=lambda name: 'pretrain' in name):
        first_of_method.setdefault(method_of(name), name)
    trained = {swapped[name] for name in first_of_method.values()}
    todo = {}
    for name, model in swapped.items():
        if model not in store:
            todo.setdefault(model, (model, name, args.arch, model in trained))
    for model, result in run_limited('run', run, list(todo.values()), **limits):
        store.add(model, result)

    rows = [row_of(name, store) for name in names]
    if not args.only:
        write_page(args.out, report(rows, versions, args.arch, store.seconds))
    for result, count in Counter(row['result'] for row in rows).items():
        print(f'{result:>17}: {count}')
    for row in rows:
        if row['result'] in (FAILS, FAULT) or args.only:
            print(f'{row["result"]:>17}: {row["name"]}: {row["reason"]}')
    print(f'{time.time() - started:.0f} s')


def version_of(name):
    return import_module(name).__version__ if find_spec(name) else None


class Store:
    """Results on disk, one line each, for one set of versions."""

    def __init__(self, folder, versions):
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:8]
        self.path = folder / f'results-{key}.jsonl'
        self.results = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    name, result = json.loads(line)
                except ValueError:  # cut off by an interruption
                    continue
                self.results[name] = result

    def __contains__(self, name):
        return name in self.results

    def __getitem__(self, name):
        return self.results[name]

    def add(self, name, result):
        self.results[name] = result
        with self.path.open('a') as file:
            file.write(json.dumps([name, result]) + '\n')

    def clear(self):
        self.results = {}
        self.path.unlink(missing_ok=True)

    @property
    def seconds(self):
        return sum(result['seconds'] for result in self.results.values())


def run_limited(title, function, items, jobs, seconds, gigabytes):
    """Call ``function(*item)`` in a process each, within limits.

    Yields:
        The first element of the item, and what the function returned or a dict with the
        ``error`` that ended it, with the ``seconds`` it took.
    """
    context = multiprocessing.get_context('fork')
    todo, running = list(reversed(items)), {}
    with Bars(TextColumn('{task.fields[item]}')) as progress:
        task = progress.add_task(f'{title:<5}', total=len(items), item='')
        while todo or running:
            while todo and len(running) < jobs:
                item = todo.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, gigabytes, function, item))
                process.start()
                sender.close()
                running[receiver] = (process, item, time.time())
                progress.update(task, item=str(item[-1] if len(item) == 1 else item[0])[:60])
            wait(running, timeout=0.5)
            for receiver, (process, item, start) in list(running.items()):
                taken = time.time() - start
                if receiver.poll():
                    try:
                        result = receiver.recv()
                    except EOFError:
                        process.join()
                        result = dict(error=f'the process died with exit code {process.exitcode}')
                elif taken > seconds:
                    process.kill()
                    result = dict(error=f'took more than {seconds:.0f} s')
                else:
                    continue
                process.join()
                del running[receiver]
                progress.advance(task)
                yield item[0], dict(result, seconds=round(taken, 2))


def _child(sender, gigabytes, function, item):
    limit = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = function(*item)
    except MemoryError:
        result = dict(error=f'needs more than {gigabytes} GB')
    except Exception as error:
        result = dict(error=describe(error), trace=traceback.format_exc()[-2000:])
    sender.send(result)


def describe(error):
    """One line for an error, without the paths of this machine."""
    text = ' '.join(str(error).split()).split('. Please')[0]
    missing = re.match(r'(\w+)_impl: implementation for device cpu not found', text)
    if missing:
        return f'needs a GPU: mmcv has no {missing[1]} for the CPU'
    for toolbox in TOOLBOXES:
        text = text.replace(f'{config_folder(toolbox)}/', '')
    return f'{type(error).__name__}: {text}'[:200] + place(error)


def place(error):
    """The last line of the toolboxes that an error came through."""
    found = ''
    for frame in traceback.extract_tb(error.__traceback__):
        match = re.search(r'/((?:mmdet|mmseg|mmengine)/(?!\.mim).*\.py)$', frame.filename)
        found = f' ({match[1]}:{frame.lineno})' if match else found
    return found


def load(name):
    return Config.fromfile(find_config(name), import_custom_modules=False)


def swap(name, arch):
    """Parse and swap a config; name the distinct model that comes out."""
    try:
        cfg = load(name)
    except Exception as error:
        return dict(error=f'does not parse: {describe(error)}', at_fault=True, group=PYRAMID)
    kind, group = (cfg.get('model') or {}).get('type'), group_of(cfg)
    result = dict(kind=kind, group=group)
    try:
        model = swap_backbone(cfg, arch, checkpoint=None).model.to_dict()
    except SwapError as error:
        return dict(result, refused=error.reason, nearest=error.nearest)
    return dict(result, model=hashlib.sha256(pickle.dumps(model)).hexdigest())


def measure(names):
    """Run the backbones of configs once each, for all processes that are forked later."""
    with Bars(TextColumn('{task.fields[item]}')) as progress:
        task = progress.add_task('look ', total=len(names), item='')
        for name in names:
            progress.update(task, advance=1, item=name[:60])
            with suppress(Exception):  # which the process of this config reports
                group_of(load(name))


def group_of(cfg):
    """What a config is counted as; whatever cannot be measured counts as a pyramid."""
    node = cfg.get('model') or {}
    if not node:
        return FRAGMENT
    while 'backbone' not in node and 'detector' in node:
        node = node['detector']
    backbone = node.get('backbone') or {}
    kind = str(backbone.get('type')).split('.')[-1]
    if kind in PLAIN_VITS or node.get('type') in CLIPS:
        return PLAIN
    if kind == 'UNet':
        return UNET
    try:
        strides = strides_of(backbone, cfg.get('default_scope'), cfg)
    except Exception:  # of whatever kind: not measured
        return PYRAMID
    return PYRAMID if {4, 8, 16, 32} & set(strides) else FINER


def run(model, name, arch, train):
    """Build the swapped model of a config, run it on a small random batch, maybe train a step."""
    cfg = load(name)
    swapped = swap_backbone(cfg, arch, checkpoint=None)
    try:
        return dict(trained=exercise(swapped, train))
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        result = dict(error=describe(error), trace=traceback.format_exc()[-2000:])
        try:
            exercise(cfg, train)
        except Exception as original:
            result['error'] = describe(original)
            result['at_fault'] = True
            if cfg.model.type == 'GroundingDINO':
                result['mended'] = runs_mended(swapped, train)
        return result


def runs_mended(cfg, train):
    mend_grounding_dino()
    try:
        exercise(cfg, train)
    except Exception:
        return False
    return True


def exercise(cfg, train):
    """Run a model, maybe train it for a step; return whether it was trained."""
    scope = cfg.default_scope
    os.chdir(config_folder(scope).parent)  # a distilled model names its teacher's config from here
    torch.manual_seed(0)
    init_default_scope(scope)
    put_stand_ins()
    cfg = small(cfg)
    model = build_model(cfg.model, scope)
    model.init_weights()
    model.eval()
    with torch.no_grad():
        model.test_step(make_batch(cfg, training=False))
    if not train:
        return False
    model.train()
    if hasattr(model, 'set_epoch'):
        model.set_epoch(0)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
    batch = model.data_preprocessor(make_batch(cfg, training=True), True)
    try:
        losses = model(**batch, mode='loss')
    except NotImplementedError:  # SORT and DeepSORT join a detector and a classifier, both trained
        return False
    loss, _ = model.parse_losses(losses)
    if not torch.isfinite(loss):
        raise ValueError(f'the loss is {loss.item()}')
    if not loss.requires_grad:
        raise ValueError('the loss has no gradient')
    loss.backward()
    for module in model.modules():
        if isinstance(module, PoolFormer):
            idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
            expected = cfg.get('find_unused_parameters') or is_frozen_copy(model, module)
            if idle and not expected:
                raise ValueError(f'no gradient in {len(idle)} tensors of the backbone: {idle[:3]}')
    parameters = [p for p in model.parameters() if p.grad is not None]
    torch.optim.AdamW(parameters, lr=1e-4).step()
    if not all(p.isfinite().all() for p in parameters):
        raise ValueError('parameters are not finite after one step')
    return True


def is_frozen_copy(model, backbone):
    """Whether it is the backbone of a teacher, which does not learn."""
    teacher = getattr(model, 'teacher', None)
    return teacher is not None and backbone in list(teacher.modules())


def small(cfg):
    """The same model for small images: fewer proposals, no fixed sizes, nothing downloaded."""
    cfg = Config(cfg.to_dict())
    unsync_batch_norms(cfg.model)
    queries = any('num_proposals' in node for _, node in walk(cfg.model))  # as many as results
    for _, node in walk(cfg.model):
        for key, most in (('nms_pre', 100), ('max_per_img', 20), ('num', 64)):
            if isinstance(node.get(key), int) and not queries:
                node[key] = min(node[key], most)
        if 'batch_augments' in node:
            node['batch_augments'] = None
        if node.get('teacher_ckpt'):
            node['teacher_ckpt'] = None
        if node.get('pretrained'):
            node['pretrained'] = None
        if 'language_model' in node:
            node['language_model']['name'] = tiny_bert()
        if node.get('lang_model_name'):
            node['lang_model_name'] = tiny_bert()
        if node.get('num_cp'):  # saves memory, with a package that is not here
            node['num_cp'] = 0
        if (node.get('init_cfg') or {}) and 'Pretrained' in str(node['init_cfg']):
            node['init_cfg'] = None
    if cfg.default_scope == 'mmseg' and cfg.model.get('data_preprocessor'):
        cfg.model.data_preprocessor.size = (SIDES['mmseg'], SIDES['mmseg'])
        cfg.model.data_preprocessor.pop('size_divisor', None)
    return cfg


def make_batch(cfg, training):
    """Random images with the annotations that the model may ask for; two to train on."""
    side, size = SIDES[cfg.default_scope], 1 + training
    if cfg.default_scope == 'mmseg':
        return segmentation_batch(side, size)
    if cfg.model.data_preprocessor.get('use_det_processor') and training:  # ByteTrack
        return detection_batch(cfg.model.detector, side, size)
    if 'Track' in cfg.model.data_preprocessor.type:
        return tracking_batch(side, training)
    if cfg.model.type != 'SoftTeacher' or not training:
        return detection_batch(cfg.model, side, size)
    branches = {}
    for name in ('sup', 'unsup_teacher', 'unsup_student'):
        branches[name] = detection_batch(cfg.model, side, size)
        for sample in branches[name]['data_samples']:
            sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
    return {
        kind: {name: batch[kind] for name, batch in branches.items()}
        for kind in ('inputs', 'data_samples')
    }


def detection_batch(model, side, size):
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals

    # What no mask head reads would mislead RTMDet's assigner.
    masks = any('mask' in str(key) for path, _ in walk(model) for key in path)
    batch = demo_mm_inputs(size, (3, side, side), [4] * size, with_mask=masks, with_semantic=True)
    shape = dict(scale_factor=(1.0, 1.0), batch_input_shape=(side, side))
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()
        sample.set_metainfo(shape)
        if 'language_model' in model:
            sample.set_metainfo(dict(text=TEXTS, custom_entities=True))
        if not model.get('rpn_head') and model.get('roi_head'):  # Fast R-CNN reads them from a file
            (sample.proposals,) = demo_mm_proposals([(3, side, side)], 50)
    return batch


def tracking_batch(side, training):
    from mmdet.testing import demo_track_inputs

    if training:
        return demo_track_inputs(1, 2, [0], (3, side, side), [4], with_mask=True)
    return demo_track_inputs(1, 1, None, (3, side, side), [4])


def segmentation_batch(side, size):
    from mmseg.structures import SegDataSample

    shape = dict(img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side))
    samples = []
    for _ in range(size):
        labels = PixelData(data=torch.randint(0, 2, (1, side, side)))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=shape))
    images = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(size)]
    return dict(inputs=images, data_samples=samples)


# The report ------------------------------------------------------------------------------


def method_of(name):
    return name.split('/')[0]


def row_of(name, store):
    """One config's row: result, reason, and which group of the totals it belongs to."""
    result = store[name]
    row = dict(name=name, method=method_of(name), group=result['group'], trained=False)
    if 'refused' in result:
        reason = result['refused'] + (
            f'. Nearest: {result["nearest"]}' if result['nearest'] else ''
        )
        return dict(row, result=REFUSED, reason=reason)
    if 'error' not in result:
        result = store[result['model']]
    if 'error' in result:
        kind = FAULT if result.get('at_fault') else FAILS
        mended = result.get('mended', False)
        reason = result['error'] + ('. With that mended it runs' if mended else '')
        return dict(row, result=kind, reason=reason, mended=mended)
    return dict(row, result=RUNS, reason='', trained=result['trained'])


GROUPS = {
    PYRAMID: 'backbone with a map of stride 4, 8, 16 or 32, or not measured',
    PLAIN: 'plain ViT',
    UNET: 'U-Net',
    FINER: 'backbone with no map coarser than stride 2',
    FRAGMENT: 'fragment without a model',
}


def report(rows, versions, arch, seconds):
    """The page: totals, then every method with its results and the reasons for them."""
    counts = Counter((row['group'], row['result']) for row in rows)
    pyramids = sum(row['group'] == PYRAMID for row in rows)
    running = counts[PYRAMID, RUNS]
    mended = sum(row.get('mended', False) for row in rows)
    toolboxes = ' and '.join(f'{name} {versions[name]}' for name in TOOLBOXES)
    packages = [f'{name} {versions[name]}' if versions[name] else f'no {name}' for name in OPTIONAL]
    return [
        '# The zoo with PoolFormer',
        '',
        'Made by `benchmarks/zoo.py`; do not edit. Every config that '
        f'{toolboxes} ship was read, its backbone replaced by PoolFormer-{arch.upper()} with '
        '`swap_backbone`, and the model built and run on a random image of '
        f'{" or ".join(f"{side}×{side} ({name})" for name, side in SIDES.items())} pixels, '
        'with random weights, on a CPU. '
        'One model per method was also trained for one step: a finite loss, a gradient in every '
        'parameter of PoolFormer, finite parameters after it. Configs whose models are equal '
        'after the swap share one run.',
        '',
        f'**{running} of {pyramids} configs ({100 * running / pyramids:.1f} %) swap, build and '
        'run.** Of the share are all configs whose backbone returns a map of stride 4, 8, 16 or 32 '
        '(measured), and those that could not be read or measured; plain ViTs, U-Nets, fragments '
        'and backbones of stride 2 alone are counted apart. '
        f'{counts[PYRAMID, FAULT]} of the others do not run here with their own backbone either, '
        f'of which {mended} would, with one line of mmdet mended as 3.3.0 has it '
        f'({100 * (running + mended) / pyramids:.1f} % then). '
        f'torch {versions["torch"]}, {", ".join(packages)}, '
        f'{seconds / 60:.0f} minutes of processes.',
        '',
        *totals(counts),
        '',
        '- *refused*: `swap_backbone` says why, and names a config that works.',
        '- *fails*: it was swapped, and then did not build, run or train.',
        "- *toolbox's fault*: so it does with its own backbone here, for want of a file, a package "
        'or a GPU, or by a fault in the line that is named.',
        '- Stand-ins: GLIP and Grounding DINO run with a random text encoder of one layer in the '
        'place of BERT, whose weights cannot be fetched here, and with what mmdet calls and '
        "transformers 5 no longer has; StrongSORT's AFLink has random weights, too; guided "
        "anchoring runs with mmcv's masked convolution by its definition, as mmcv has none for "
        'CPUs. SORT, DeepSORT and StrongSORT join parts that are trained on their own.',
        '',
        *methods_table(rows),
    ]


def totals(counts):
    """Results by group, and all together."""
    results = (RUNS, REFUSED, FAILS, FAULT)
    table = []
    for group, title in GROUPS.items():
        numbers = [counts[group, result] for result in results]
        table.append((title, sum(numbers), *numbers))
    sums = [sum(column) for column in zip(*(row[1:] for row in table), strict=True)]
    table.append(('**all**', *(f'**{number}**' for number in sums)))
    return markdown(('configs', 'all', *results), table)


def methods_table(rows):
    """A row for every result and reason of a method."""
    methods = defaultdict(list)
    for row in rows:
        methods[row['method']].append(row)
    table = []
    for method, members in methods.items():
        by_result = defaultdict(list)
        for row in members:
            by_result[row['result'], row['reason']].append(row)
        for (result, reason), same in by_result.items():
            which = str(len(same))
            if result == RUNS:
                result = 'runs, trains' if any(row['trained'] for row in same) else RUNS
            elif len(same) < len(members):
                names = [row['name'].split('/')[-1].removesuffix('.py') for row in same]
                which += ': ' + ', '.join(names)
            table.append((method, result, which, escape(reason)))
    return markdown(('method', 'result', 'configs', 'reason'), table)


def escape(text):
    return text.replace('|', '\\|').replace('<', '&lt;')


if __name__ == '__main__':
    main()
