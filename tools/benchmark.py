"""Time PoolFormer against timm's and against what else a user would pick.

Contenders run in turns, in bursts of a few calls, and are compared by medians. On the CPU
each has a process of its own, as its user would: in one process the C library's allocator
keeps for one contender the memory that another one returned, and page faults decide.
Writes docs/benchmarks/DEVICE.json, and from all such files docs/benchmarks.md and plots.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import timm
import torch
from rich.progress import Progress
from torch import Tensor, nn

from mmpoolformer import ARCHS, PoolFormer
from mmpoolformer.checkpoints import find_weights
from mmpoolformer.deploy import compile_for_inference, switch_to_deploy

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
OTHERS = {
    'resnet50': 'resnet50',
    'swin_t': 'swin_tiny_patch4_window7_224',
    'pvt_v2_b1': 'pvt_v2_b1',
    'convnext_tiny': 'convnext_tiny',
}
COMPILED_SIZE = '512x512'

# The comparisons that the project answers for. Values are contender and type; a bound in
# «times» compares speed, or peak memory where ``of`` says so.
CPU = dict(device='cpu', mode='inference', size='512x512', batch=1)
CUDA = dict(device='cuda', mode='training', size='512x512', batch=16, arch='s24')
DETECTOR = dict(device='cuda', mode='detector', size='800x1333', batch=4, arch='s12')
DEPLOYED = 'ours, deploy + compile'
FLOOR = 'convolutions alone'
PLAIN = ('ours, plain', FLOOR)
TARGETS = [
    dict(CPU, ours=('ours', 'float32'), other=('timm', 'float32'), least=1.5),
    dict(CPU, ours=(DEPLOYED, 'float32'), other=('timm', 'float32'), least=2.3),
    dict(CPU, ours=(DEPLOYED, 'float32'), other=(FLOOR, 'float32'), least=1 / 1.2),
    dict(CPU, ours=(DEPLOYED, 'bfloat16'), other=('timm', 'float32'), least=3.8),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=2.0),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm, compiled', 'bfloat16'), least=1.2),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=1 / 0.6, of='memory'),
    dict(CUDA, mode='inference', ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=2.5),
    dict(DETECTOR, ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=1.3),
]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--archs', nargs='+', default=['s12', 's24'])
    parser.add_argument('--sizes', nargs='+', default=['224x224', '512x512', '800x1333'])
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--modes', nargs='+', choices=MODES, default=['inference', 'training'])
    parser.add_argument(
        '--batch', type=int, help='images at a time (default: 1; on CUDA 16, for the detector 4)'
    )
    parser.add_argument('--rounds', type=int, default=7, help='bursts of each contender')
    parser.add_argument('--no-compile', action='store_true', help='leave compiled contenders out')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder of the report')
    args = parser.parse_args()
    if any(not re.fullmatch(r'\d+x\d+', size) for size in args.sizes):
        parser.error(f'--sizes {args.sizes}: give HEIGHTxWIDTH, such as 512x512')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: this machine has no CUDA device')
    return args


def main():
    args = parse_args()
    cases = [
        dict(
            device=args.device,
            mode=mode,
            arch=arch,
            dtype=dtype,
            size=size,
            batch=args.batch or default_batch(args.device, mode),
        )
        for mode in args.modes
        for arch in args.archs
        for dtype in args.dtypes
        for size in args.sizes
    ]
    records = []
    with Progress() as progress:
        task = progress.add_task('', total=len(cases))
        for case in cases:
            progress.update(task, description=' '.join(str(value) for value in case.values()))
            records += measure_case(case, args)
            progress.advance(task)
            write(args, records)
    report(args.out)


def default_batch(device: str, mode: str) -> int:
    return 1 if device == 'cpu' else 4 if mode == 'detector' else 16


def measure_case(case: dict, args) -> list[dict]:
    """Time every contender of a case in turns; one record each."""
    kind = Contender if case['device'] == 'cuda' else ContenderProcess
    contenders = {name: kind(case, name) for name in names(case, not args.no_compile)}
    times = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, contender in contenders.items():
            times[name] += contender.burst()
    memory = {name: contender.peak_memory() for name, contender in contenders.items()}
    for contender in contenders.values():
        contender.close()
    return [
        dict(
            case,
            contender=name,
            milliseconds=statistics.median(values),
            quartiles=statistics.quantiles(values, n=4)[::2],
            images_per_second=1e3 * case['batch'] / statistics.median(values),
            peak_mebibytes=memory[name],
        )
        for name, values in times.items()
    ]


def names(case: dict, compiled: bool) -> list[str]:
    """The contenders of a case."""
    if case['mode'] == 'detector':
        return ['timm', 'ours']
    found = ['timm', 'ours', 'ours, plain']
    if case['arch'] == 's12':
        found += OTHERS
    inference = case['mode'] == 'inference'
    if compiled and case['size'] == COMPILED_SIZE and (inference or case['device'] == 'cuda'):
        found += ['timm, compiled', 'ours, compiled']
        if inference:
            found.append(DEPLOYED)
    return [*found, FLOOR] if inference else found


class Contender:
    """A model with what is done with it, ready to be timed."""

    def __init__(self, case: dict, name: str):
        torch.manual_seed(0)
        height, width = map(int, case['size'].split('x'))
        image = torch.randn(case['batch'], 3, height, width, device=case['device'])
        self.device = case['device']
        self.step = MODES[case['mode']](case, name, image)
        self.burst()

    def burst(self) -> list[float]:
        return burst(self.step, self.device)

    def peak_memory(self) -> float | None:
        return peak_memory(self.step, self.device)

    def close(self):
        del self.step


class ContenderProcess:
    """A :class:`Contender` in a child process, which waits while others have their turn."""

    def __init__(self, case: dict, name: str):
        context = multiprocessing.get_context('fork')
        self.pipe, pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(case, name, pipe), daemon=True)
        self.process.start()
        pipe.close()
        self.pipe.recv()

    def burst(self) -> list[float]:
        return self.call('burst')

    def peak_memory(self) -> float | None:
        return self.call('peak_memory')

    def call(self, method: str):
        self.pipe.send(method)
        return self.pipe.recv()

    def close(self):
        self.pipe.send(None)
        self.process.join()


def serve(case: dict, name: str, pipe):
    contender = Contender(case, name)
    pipe.send('ready')
    while (method := pipe.recv()) is not None:
        pipe.send(getattr(contender, method)())
    os._exit(0)  # not the parent's clean-up


def burst(step: Callable, device: str, calls: int = 3) -> list[float]:
    """Milliseconds of all calls in a row but the first."""
    values = []
    for _ in range(calls):
        if device == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            values.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            step()
            values.append(1e3 * (time.perf_counter() - start))
    return values[1:]


def peak_memory(step: Callable, device: str) -> float | None:
    """MiB that a step needs on top of what is allocated before it; ``None`` if unknown."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = resident('VmRSS')
        step()
        return (resident('VmHWM') - before) / 2**10
    except OSError:
        return None


def resident(field: str) -> int:
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def inference_step(case: dict, name: str, image: Tensor) -> Callable:
    dtype = DTYPES[case['dtype']]
    image = image.to(dtype)
    model = backbone(case, name).to(image.device, dtype).eval()
    if name == FLOOR:
        calls = convolutions(model, image)

        def run_convolutions():
            for convolution, x in calls:
                without_gradients(convolution, x)

        return run_convolutions
    if name == DEPLOYED:
        switch_to_deploy(model)
        compile_for_inference(model)
    elif 'compiled' in name:
        model = torch.compile(model, dynamic=False)
    return partial(without_gradients, model, image)


def training_step(case: dict, name: str, image: Tensor) -> Callable:
    model = backbone(case, name).to(image.device).train()
    if 'compiled' in name:
        model = torch.compile(model, dynamic=False)
    return partial(train, lambda: sum(out.float().mean() for out in model(image)), model, case)


def detector_step(case: dict, name: str, image: Tensor) -> Callable:
    """A training step of RetinaNet, with our backbone or with timm's in its place."""
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.structures import InstanceData

    init_default_scope('mmdet')
    config = f'retinanet_poolformer-{case["arch"]}_fpn_1x_coco.py'
    cfg = Config.fromfile(ROOT / 'configs' / 'detection' / config)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    if name == 'timm':
        out_indices = cfg.model.backbone.out_indices
        model.backbone = timm_features(f'poolformer_{case["arch"]}', out_indices=out_indices)
    model = model.to(image.device).train()

    height, width = image.shape[2:]
    corners = torch.rand(10, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat((corners, corners + 0.4 * corners.max()), 1).to(image.device)
    sample = DetDataSample(
        metainfo=dict(img_shape=(height, width), pad_shape=(height, width), scale_factor=(1, 1))
    )
    labels = torch.randint(80, (10,), device=image.device)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)

    def loss():
        losses = model.loss(image, [copy.copy(sample) for _ in image])
        return sum(sum(v) if isinstance(v, list) else v for v in losses.values())

    return partial(train, loss, model, case)


MODES = {'inference': inference_step, 'training': training_step, 'detector': detector_step}


def backbone(case: dict, name: str) -> nn.Module:
    """A contender as built; all PoolFormers have the weights of the same seed."""
    if name in OTHERS:
        image_size = tuple(map(int, case['size'].split('x')))
        return timm_features(
            OTHERS[name], **(dict(img_size=image_size) if name == 'swin_t' else {})
        )
    timms = timm_features(f'poolformer_{case["arch"]}')
    if name.startswith('timm'):
        return timms
    weights = {re.sub(r'^stages_', 'stages.', key): v for key, v in timms.state_dict().items()}
    model = PoolFormer(case['arch'], token_mixing='plain' if name in PLAIN else 'auto')
    missing, _ = model.load_state_dict(find_weights(weights).to('official'), strict=False)
    assert all(key.startswith('norm') for key in missing), missing  # timm has no output norms
    return model


def timm_features(name: str, **options) -> nn.Module:
    return timm.create_model(name, pretrained=False, features_only=True, **options)


def convolutions(model: nn.Module, image: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Every convolution of a model with its own input, in channels-last: the floor."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, args, _: calls.append((module, args[0])))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    without_gradients(model, image)
    for hook in hooks:
        hook.remove()
    return [(m, x.contiguous(memory_format=torch.channels_last)) for m, x in calls]


def without_gradients(model: nn.Module, image: Tensor):
    with torch.no_grad():
        return model(image)


def train(loss: Callable, model: nn.Module, case: dict):
    """Forward and backward, under autocast for 16 bits."""
    for parameter in model.parameters():
        parameter.grad = None
    dtype = DTYPES[case['dtype']]
    context = (
        torch.autocast(case['device'], dtype)
        if dtype != torch.float32
        else contextlib.nullcontext()
    )
    with context:
        value = loss()
    value.backward()


def write(args, records: list[dict]):
    """Replace the measured cases in the device's file, all or nothing."""
    folder = args.out / 'benchmarks'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{args.device}.json'
    content = json.loads(path.read_text()) if path.exists() else {'records': []}
    measured = {case_of(record) for record in records}
    kept = [record for record in content['records'] if case_of(record) not in measured]
    records = sorted(kept + records, key=case_of)  # stable: contenders keep their order
    content = dict(machine=machine(args.device), records=records)
    partial_file = path.with_suffix('.partial')
    partial_file.write_text(json.dumps(content, indent=1) + '\n')
    partial_file.replace(path)


def case_of(record: dict) -> tuple:
    return tuple(record[key] for key in ('device', 'mode', 'arch', 'dtype', 'size', 'batch'))


def machine(device: str) -> dict:
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        cpu_info = Path('/proc/cpuinfo')
        found = cpu_info.exists() and re.search(r'model name\s*: (.+)', cpu_info.read_text())
        name = f'{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads'
    return dict(name=name, torch=torch.__version__, timm=timm.__version__)


def report(folder: Path):
    """Write benchmarks.md and the plots from what all devices measured."""
    contents = [json.loads(p.read_text()) for p in sorted((folder / 'benchmarks').glob('*.json'))]
    records = [record for content in contents for record in content['records']]
    lines = [
        '# Benchmarks',
        '',
        'Made by `tools/benchmark.py`: contenders in turns, on the CPU each in a process of its '
        'own, medians of bursts, the same weights for all PoolFormers. «ours» is the backbone '
        'as built, «timm» the plain definition. A case is `arch type size batch`. Ratios are what '
        'carries over to other machines, more or less.',
        '',
        *(f'- {c["machine"]["name"]}; torch {c["machine"]["torch"]}, timm {c["machine"]["timm"]}'
          for c in contents),
        '',
        '## Targets',
        '',
        *target_table(records),
    ]  # fmt: skip
    for device in ('cpu', 'cuda'):
        for mode in MODES:
            chosen = [r for r in records if (r['device'], r['mode']) == (device, mode)]
            if chosen:
                lines += ['', f'## {mode.capitalize()}, {device}', '', *mode_table(chosen, records)]
    growth = [r for r in records if r['mode'] == 'inference' and r['dtype'] == 'float32']
    if growth:
        lines += ['', '## Growth', '', *growth_table(growth)]
    lines += ['', *plot(records, folder / 'benchmarks')]
    (folder / 'benchmarks.md').write_text('\n'.join(lines).rstrip() + '\n')
    print('\n'.join(target_table(records)))
    print(f'report: {folder / "benchmarks.md"}')


def target_table(records: list[dict]) -> list[str]:
    rows = []
    for target in TARGETS:
        memory = target.get('of') == 'memory'
        (name, dtype), (other, other_dtype) = target['ours'], target['other']
        reached = []
        for arch in [target['arch']] if 'arch' in target else ['s12', 's24']:
            ours = find(records, target, arch, name, dtype)
            theirs = find(records, target, arch, other, other_dtype)
            if ours and theirs:
                ratio = theirs['peak_mebibytes' if memory else 'milliseconds']
                ratio /= ours['peak_mebibytes' if memory else 'milliseconds']
                reached.append(f'{arch.upper()} {show_ratio(ratio, target["least"])}')
        what = 'memory of' if memory else 'time of' if target['least'] < 1 else ''
        where = f'{target["device"]} {target["mode"]} {target["size"]}, batch {target["batch"]}'
        limit = show_ratio(target['least'], target['least'], bound=True)
        against = f'{limit} × {what} {other} {other_dtype}'.replace('  ', ' ')
        rows.append((where, f'{name} {dtype}', against, ', '.join(reached) or 'not measured'))
    return markdown(('where', 'contender', 'target', 'reached'), rows)


def show_ratio(ratio: float, least: float, bound: bool = False) -> str:
    """As the target is put: a speed-up, or a share of the time or memory of the other."""
    share = least < 1 or abs(least - 1 / 0.6) < 1e-9
    sign = ('≤ ' if share else '≥ ') if bound else ''
    return f'{sign}{1 / ratio if share else ratio:.2f}'


def find(records, case, arch, contender, dtype) -> dict | None:
    wanted = {key: case[key] for key in ('device', 'mode', 'size', 'batch')}
    wanted.update(arch=arch, contender=contender, dtype=dtype)
    matches = [r for r in records if all(r[key] == value for key, value in wanted.items())]
    return matches[0] if matches else None


def mode_table(records: list[dict], all_records: list[dict]) -> list[str]:
    rows = []
    for record in records:
        baseline = find(all_records, record, record['arch'], 'timm', record['dtype'])
        floor = find(all_records, record, record['arch'], FLOOR, record['dtype'])
        low, high = record['quartiles']
        milliseconds, memory = record['milliseconds'], record['peak_mebibytes']
        rows.append((
            f'{record["arch"]} {record["dtype"]} {record["size"]} {record["batch"]}',
            record['contender'],
            f'{milliseconds:.1f} ({low:.1f}–{high:.1f})',
            f'{record["images_per_second"]:.1f}',
            f'{baseline["milliseconds"] / milliseconds:.2f}',
            f'{milliseconds / floor["milliseconds"]:.2f}' if floor else '',
            '' if memory is None else f'{memory:.0f}',
        ))  # fmt: skip
    return markdown(
        ('case', 'contender', 'ms (quartiles)', 'images/s', '× timm', '/ floor', 'peak MiB'), rows
    )


def growth_table(records: list[dict]) -> list[str]:
    """Microseconds per 1000 pixels and block: constant where time is linear in both."""
    rows = []
    for record in records:
        if record['contender'] in ('timm', 'ours'):
            height, width = map(int, record['size'].split('x'))
            kilopixels = height * width * record['batch'] / 1e3
            blocks = sum(ARCHS[record['arch']].layers)
            cost = 1e3 * record['milliseconds'] / kilopixels
            rows.append((record['device'], record['contender'], record['arch'], blocks,
                         record['size'], f'{cost:.0f}', f'{cost / blocks:.1f}'))  # fmt: skip
    headings = 'device', 'contender', 'arch', 'blocks', 'size', 'µs / kilopixel', '… / block'
    return markdown(headings, rows)


def markdown(headings, rows) -> list[str]:
    line = '| {} |'.format
    table = [headings, ['---'] * len(headings), *rows]
    return [line(' | '.join(str(cell) for cell in row)) for row in table]


def plot(records: list[dict], folder: Path) -> list[str]:
    """One bar chart per device, of inference at 512×512; returns their Markdown."""
    pictures = []
    for device in ('cpu', 'cuda'):
        chosen = [
            r for r in records
            if (r['device'], r['mode'], r['size'], r['arch'])
            == (device, 'inference', COMPILED_SIZE, 's12')
        ]  # fmt: skip
        if not chosen:
            continue
        chosen.sort(key=lambda r: r['milliseconds'], reverse=True)
        figure, axis = plt.subplots(figsize=(8, 0.3 * len(chosen) + 1.2))
        colours = {True: 'tab:green', False: 'tab:gray'}
        labels = [f'{r["contender"]}, {r["dtype"]}' for r in chosen]
        axis.barh(labels, [r['milliseconds'] for r in chosen],
                  color=[colours[r['contender'].startswith('ours')] for r in chosen])  # fmt: skip
        for position, record in enumerate(chosen):
            axis.text(
                record['milliseconds'], position, f' {record["milliseconds"]:.1f}', va='center'
            )
        axis.set_xlabel(
            f'ms for {chosen[0]["batch"]} × 512×512, PoolFormer-S12 and others, {device}'
        )
        axis.margins(x=0.1)
        figure.tight_layout()
        figure.savefig(folder / f'{device}.png', dpi=110)
        plt.close(figure)
        pictures.append(f'![Inference on {device}](benchmarks/{device}.png)')
    return pictures


if __name__ == '__main__':
    main()
