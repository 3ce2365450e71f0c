"""Time PoolFormer against timm's and against what else a user would pick.

Contenders run in turns, in bursts of a few calls, and are compared by medians. On the CPU
each has a process of its own, as its user would: in one process the C library's allocator
keeps for one contender the memory that another one returned, and page faults decide.
Writes docs/reports/benchmarks/DEVICE-MODE.json, each of one machine, and from all such files
docs/reports/benchmarks.md and plots.
"""

import argparse
import copy
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import (
    REPORTS,
    build_for_training,
    burst,
    earlier_records,
    machine,
    machine_line,
    markdown,
    peak_memory,
    save_figure,
    without_gradients,
    write_json,
    write_page,
)
from contenders import InProcess, measure, timm_features
from torch import Tensor, nn

from mmpoolformer import ARCHS, PoolFormer
from mmpoolformer.checkpoints import find_weights
from mmpoolformer.deploy import compile_for_inference, switch_to_deploy
from mmpoolformer.utils.memory import keep_freed_memory, reuse_freed_memory
from mmpoolformer.utils.progress import Bars

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
OTHERS = {
    'resnet50': 'resnet50',
    'swin_t': 'swin_tiny_patch4_window7_224',
    'pvt_v2_b1': 'pvt_v2_b1',
    'convnext_tiny': 'convnext_tiny',
}
COMPILED_SIZE = '512x512'

# The comparisons that the project answers for. Values are contender and type. A target is a
# speed-up of at least ``least``, or at most ``most`` of the other's ``of``: time or memory.
CPU = dict(device='cpu', mode='inference', size='512x512', batch=1)
TRAINING = dict(device='cpu', mode='training', batch=2)
CUDA = dict(device='cuda', mode='training', size='512x512', batch=16, arch='s24')
DETECTOR = dict(device='cuda', mode='detector', size='800x1333', batch=4, arch='s12')
DEPLOYED = 'ours, deploy + compile'
FLOOR = 'convolutions alone'
PLAIN = ('ours, plain', FLOOR)
TARGETS = [
    dict(CPU, ours=('ours', 'float32'), other=('timm', 'float32'), least=1.5),
    dict(CPU, ours=(DEPLOYED, 'float32'), other=('timm', 'float32'), least=2.3),
    dict(CPU, ours=(DEPLOYED, 'float32'), other=(FLOOR, 'float32'), most=1.2, of='time'),
    dict(CPU, ours=(DEPLOYED, 'bfloat16'), other=('timm', 'float32'), least=3.8),
    *(
        dict(TRAINING, size=size, **target)
        for size in ('224x224', '512x512')
        for target in (
            dict(ours=('ours', 'float32'), other=('timm', 'float32'), least=1.25),
            dict(ours=('ours, compiled', 'float32'), other=('timm', 'float32'), least=1.5),
            dict(ours=('ours', 'float32'), other=(FLOOR, 'float32'), most=1.3, of='time'),
            dict(ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=1.6),
        )
    ),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), least=2.0),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm, compiled', 'bfloat16'), least=1.2),
    dict(CUDA, ours=('ours', 'bfloat16'), other=('timm', 'bfloat16'), most=0.6, of='memory'),
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
        '--batch',
        type=int,
        help='images at a time (default: 1, in training 2; on CUDA 16, for the detector 4)',
    )
    parser.add_argument('--rounds', type=int, default=7, help='bursts of each contender')
    parser.add_argument('--no-compile', action='store_true', help='leave compiled contenders out')
    parser.add_argument('--out', type=Path, default=REPORTS, help='folder of the report')
    args = parser.parse_args()
    if any(not re.fullmatch(r'\d+x\d+', size) for size in args.sizes):
        parser.error(f'--sizes {args.sizes}: give HEIGHTxWIDTH, such as 512x512')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: this machine has no CUDA device')
    here = machine(args.device)
    for mode in args.modes:
        try:
            earlier_records(file_of(args, mode), machine=here)
        except ValueError as error:
            parser.error(str(error))
    return args


def file_of(args, mode: str) -> Path:
    return args.out / 'benchmarks' / f'{args.device}-{mode}.json'


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
    with Bars() as progress:
        task = progress.add_task('', total=len(cases))
        for case in cases:
            progress.update(task, description=' '.join(str(value) for value in case.values()))
            write(file_of(args, case['mode']), measure_case(case, args))
            progress.advance(task)
    report(args.out)


def default_batch(device: str, mode: str) -> int:
    if device == 'cpu':
        return 2 if mode == 'training' else 1
    return 4 if mode == 'detector' else 16


def measure_case(case: dict, args) -> list[dict]:
    """Time every contender of a case in turns; one record each, of those that fail the cause."""
    kind = Contender if case['device'] == 'cuda' else ContenderProcess
    if kind is Contender:  # a process starts with nothing compiled
        reset_compiler()
    return measure(kind, case, names(case, not args.no_compile), args.rounds)


def names(case: dict, compiled: bool) -> list[str]:
    """The contenders of a case."""
    if case['mode'] == 'detector':
        return ['timm', 'ours']
    found = ['timm', 'ours', 'ours, plain']
    if case['arch'] == 's12':
        found += OTHERS
    inference = case['mode'] == 'inference'
    trained_here = case['device'] == 'cpu' and not inference
    if compiled and (case['size'] == COMPILED_SIZE or trained_here):
        found += ['timm, compiled', 'ours, compiled']
        if inference:
            found.append(DEPLOYED)
    return [*found, FLOOR] if inference or trained_here else found


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
        self.step = None


def reset_compiler():
    """Forget what was compiled for other cases.

    After eight variants of one forward, of which all cases have some, Dynamo would run further
    ones as they are, and they would count as compiled. Should it come to that, the contender
    fails.
    """
    torch._dynamo.reset()
    if hasattr(torch._dynamo.config, 'fail_on_recompile_limit_hit'):  # from torch 2.6 on
        torch._dynamo.config.fail_on_recompile_limit_hit = True


class ContenderProcess(InProcess):
    """A :class:`Contender` in a child process."""

    @staticmethod
    def make(case: dict, name: str):
        return Contender(case, name)


def inference_step(case: dict, name: str, image: Tensor) -> Callable:
    dtype = DTYPES[case['dtype']]
    image = image.to(dtype)
    model = backbone(case, name).to(image.device, dtype).eval()
    if isinstance(model, PoolFormer):
        reuse_freed_memory()  # as tools/test.py does
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
    if isinstance(model, PoolFormer) and case['device'] == 'cpu':
        keep_freed_memory()  # as tools/train.py does
    if name == FLOOR:
        return convolutions_with_gradients(model, image, case)
    if 'compiled' in name:
        model = torch.compile(model, dynamic=False)
    return partial(train, lambda: sum(out.float().mean() for out in model(image)), model, case)


def convolutions_with_gradients(model: nn.Module, image: Tensor, case: dict) -> Callable:
    """Forward and backward of every convolution of a model with its own input."""
    calls = [
        (convolution, x.detach().requires_grad_(x is not image))
        for convolution, x in convolutions(model, image)
    ]
    with autocast(case):
        grads = [torch.randn_like(convolution(x)) for convolution, x in calls]

    def run():
        for (convolution, x), grad in zip(calls, grads):
            x.grad = convolution.weight.grad = convolution.bias.grad = None
            with autocast(case):
                y = convolution(x)
            y.backward(grad)

    return run


def detector_step(case: dict, name: str, image: Tensor) -> Callable:
    """A training step of RetinaNet, with our backbone or with timm's in its place."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    model = build_for_training(f'retinanet_poolformer-{case["arch"]}_fpn_1x_coco.py')
    if name == 'timm':
        out_indices = model.backbone.out_indices
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


def train(loss: Callable, model: nn.Module, case: dict):
    """Forward and backward, under autocast for 16 bits."""
    for parameter in model.parameters():
        parameter.grad = None
    with autocast(case):
        value = loss()
    value.backward()


def autocast(case: dict):
    dtype = DTYPES[case['dtype']]
    # torch 2.1 takes no float32 for CPUs, not even switched off.
    return nullcontext() if dtype == torch.float32 else torch.autocast(case['device'], dtype)


def write(path: Path, records: list[dict]):
    """Replace a case in the file of its device and mode, all or nothing."""
    case = case_of(records[0])
    about = dict(machine=machine(case[0]))
    kept = [record for record in earlier_records(path, **about) if case_of(record) != case]
    records = sorted(kept + records, key=case_of)  # stable: contenders keep their order
    write_json(path, dict(about, records=records))


def case_of(record: dict) -> tuple:
    return tuple(record[key] for key in ('device', 'mode', 'arch', 'dtype', 'size', 'batch'))


# Report ------------------------------------------------------------------------------------


def report(folder: Path):
    """Write benchmarks.md and the plots from what all devices measured."""
    files = sorted((folder / 'benchmarks').glob('*-*.json'))
    contents = {path.stem.replace('-', ' '): json.loads(path.read_text()) for path in files}
    records = [record for content in contents.values() for record in content['records']]
    measured = [record for record in records if 'error' not in record]
    lines = [
        '# Benchmarks',
        '',
        'Made by `benchmarks/speed.py`: contenders in turns, on the CPU each in a process of its '
        'own, medians of bursts, the same weights for all PoolFormers. «ours» is the backbone '
        'as built, «timm» the plain definition. A case is `arch type size batch`. Ratios are what '
        'carries over to other machines, more or less.',
        '',
        *(f'- {name}: {machine_line(content["machine"])}' for name, content in contents.items()),
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
    growth = [r for r in measured if r['mode'] == 'inference' and r['dtype'] == 'float32']
    if growth:
        lines += ['', '## Growth', '', *growth_table(growth)]
    lines += ['', *plot(measured, folder / 'benchmarks')]
    print('\n'.join(target_table(records)))
    write_page(folder / 'benchmarks.md', lines)


def target_table(records: list[dict]) -> list[str]:
    rows = []
    for target in TARGETS:
        (name, dtype), (other, other_dtype) = target['ours'], target['other']
        reached = []
        for arch in [target['arch']] if 'arch' in target else ['s12', 's24']:
            ours = find(records, target, arch, name, dtype)
            theirs = find(records, target, arch, other, other_dtype)
            if ours and theirs:
                reached.append(f'{arch.upper()} {reached_ratio(target, ours, theirs):.2f}')
        where = f'{target["device"]} {target["mode"]} {target["size"]}, batch {target["batch"]}'
        if 'least' in target:
            limit = f'≥ {target["least"]:.2f} ×'
        else:
            limit = f'≤ {target["most"]:.2f} × {target["of"]} of'
        against = f'{limit} {other} {other_dtype}'
        rows.append((where, f'{name} {dtype}', against, ', '.join(reached) or 'not measured'))
    return markdown(('where', 'contender', 'target', 'reached'), rows)


def reached_ratio(target: dict, ours: dict, theirs: dict) -> float:
    """What a target's bound is compared with: a speed-up, or a share of time or memory."""
    if 'least' in target:
        return theirs['milliseconds'] / ours['milliseconds']
    key = dict(time='milliseconds', memory='peak_mebibytes')[target['of']]
    return ours[key] / theirs[key]


def find(records, case, arch, contender, dtype) -> dict | None:
    wanted = {key: case[key] for key in ('device', 'mode', 'size', 'batch')}
    wanted.update(arch=arch, contender=contender, dtype=dtype)
    matches = [r for r in records if all(r[key] == value for key, value in wanted.items())]
    return next((r for r in matches if 'error' not in r), None)


def mode_table(records: list[dict], all_records: list[dict]) -> list[str]:
    rows = []
    for record in records:
        baseline = find(all_records, record, record['arch'], 'timm', record['dtype'])
        floor = find(all_records, record, record['arch'], FLOOR, record['dtype'])
        name = f'{record["arch"]} {record["dtype"]} {record["size"]} {record["batch"]}'
        if 'error' in record:
            rows.append((name, record['contender'], f'failed: {record["error"]}', *[''] * 4))
            continue
        low, high = record['quartiles']
        milliseconds, memory = record['milliseconds'], record['peak_mebibytes']
        rows.append((
            name,
            record['contender'],
            f'{milliseconds:.1f} ({low:.1f}–{high:.1f})',
            f'{record["images_per_second"]:.1f}',
            f'{baseline["milliseconds"] / milliseconds:.2f}' if baseline else '',
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
        save_figure(figure, folder / f'{device}.png')
        pictures.append(f'![Inference on {device}](benchmarks/{device}.png)')
    return pictures


if __name__ == '__main__':
    main()
