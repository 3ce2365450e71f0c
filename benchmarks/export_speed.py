"""Time model files in ONNX Runtime and OpenVINO against PyTorch, folded and compiled.

Contenders run in turns, in bursts of a few calls, each in a process of its own, and are compared by
medians. All files are for one size. int8 is calibrated on noise here: only its time is asked for.
Writes docs/reports/export/cpu.json, and from it docs/reports/export.md and a plot; cases that are
not measured again stay as they are.
"""

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import (
    REPORTS,
    ROOT,
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
from contenders import ASKED, InProcess, measure, timm_features
from mmengine.config import Config
from torch import nn

from mmpoolformer import PoolFormer
from mmpoolformer.deploy import compile_for_inference, switch_to_deploy
from mmpoolformer.exporting import Metadata, graphs, open_model
from mmpoolformer.exporting.formats import save_openvino, to_openvino, write
from mmpoolformer.exporting.metadata import files_of
from mmpoolformer.exporting.quantising import quantise
from mmpoolformer.exporting.runtimes import OpenVino
from mmpoolformer.exporting.wrappers import Backbone, Detector, Segmentor
from mmpoolformer.registry import build_model
from mmpoolformer.utils.memory import reuse_freed_memory
from mmpoolformer.utils.progress import Bars

# Whole models, by the configs that are published; {} is the arch.
WHOLE = {
    'RetinaNet': 'detection/retinanet_poolformer-{}_fpn_1x_coco.py',
    'Semantic FPN': 'segmentation/sem-fpn_poolformer-{}_8xb4-40k_ade20k-512x512.py',
}
BACKBONE = 'backbone'
DEPLOYED = 'folded + compiled'
# How a model is run, and the file of it that is read.
PYTORCH = {'PyTorch': '.pth', DEPLOYED: '.pth'}
FILES = {'ONNX Runtime': '.onnx', 'OpenVINO': '.xml', 'OpenVINO int8': '-int8.xml'}
BFLOAT16 = {'OpenVINO bfloat16': '.xml'}
SUFFIXES = {**PYTORCH, **FILES, **BFLOAT16}
FLOAT32 = ('ONNX Runtime', 'OpenVINO')
CALIBRATION = 16
ASKED_HERE = dict(ASKED, start_seconds='start', mebibytes='size', operators='operators')
MOST_OPERATORS = 4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--archs', nargs='+', default=['s12', 's24'])
    parser.add_argument(
        '--parts', nargs='+', choices=[BACKBONE, *WHOLE], default=[BACKBONE, *WHOLE]
    )
    parser.add_argument('--sizes', nargs='+', default=['512x512'])
    parser.add_argument('--rounds', type=int, default=7, help='bursts of each contender')
    parser.add_argument('--out', type=Path, default=REPORTS, help='folder of the report')
    args = parser.parse_args()
    if any(not re.fullmatch(r'\d+x\d+', size) for size in args.sizes):
        parser.error(f'--sizes {args.sizes}: give HEIGHTxWIDTH, such as 512x512')
    try:
        earlier_records(file_of(args), **here())
    except ValueError as error:
        parser.error(str(error))
    return args


def file_of(args) -> Path:
    return args.out / 'export' / 'cpu.json'


def here() -> dict:
    """Where it is measured, and with which versions."""
    versions = {name: version(name) for name in ('onnxruntime', 'openvino', 'nncf')}
    return dict(machine=machine('cpu') | versions, cpu=instructions())


def main():
    args = parse_args()
    cases = [
        dict(part=part, arch=arch, size=size, batch=1)
        for part in args.parts
        for arch in args.archs
        for size in args.sizes
    ]
    records = earlier_records(file_of(args), **here())
    with Bars() as progress:
        task = progress.add_task('', total=len(cases))
        for case in cases:
            progress.update(task, description=' '.join(map(str, case.values())))
            load = os.getloadavg()[0]
            measured = [dict(record, load=load) for record in measure_case(case, args.rounds)]
            others = [record for record in records if any(record[key] != case[key] for key in case)]
            records = sorted(others + measured, key=place)
            write_json(file_of(args), dict(here(), records=records))
            progress.advance(task)
    report(args.out)


def place(record: dict) -> tuple:
    """Where a record stands in the page; those of a case stay as they are."""
    size = tuple(map(int, record['size'].split('x')))
    return [BACKBONE, *WHOLE].index(record['part']), record['arch'], size


def instructions() -> str:
    """What the processor has for convolutions in float32, 16 and 8 bits."""
    known = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    found = [flag for flag in ('vnni', 'amx_int8', 'avx512_bf16') if flag in known]
    return f'{torch.backends.cpu.get_cpu_capability()}, {", ".join(found) or "no VNNI or AMX"}'


def has_bfloat16() -> bool:
    return 'bf16' in instructions() or 'amx' in instructions()


def measure_case(case: dict, rounds: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        ContenderProcess.folder = Path(folder)
        for family in families(case):  # apart: runtimes keep threads, which are not forked
            context = multiprocessing.get_context('fork')
            process = context.Process(target=write_files, args=(case, family, Path(folder)))
            process.start()
            process.join()
        return measure(ContenderProcess, case, names(case), rounds, ASKED_HERE)


def families(case: dict) -> list[str]:
    if case['part'] != BACKBONE:
        return ['ours']
    return ['ours', 'timm', *(['resnet50'] if case['arch'] == 's12' else [])]


def names(case: dict) -> list[str]:
    """The contenders of a case."""
    ways = [*PYTORCH, *FILES, *(BFLOAT16 if has_bfloat16() else [])]
    return [f'{family}, {way}' for family in families(case) for way in ways]


# Models ------------------------------------------------------------------------------------


class Features(Backbone):
    """The features of any backbone."""

    def __init__(self, model: nn.Module, count: int = 4):
        nn.Module.__init__(self)
        self.model = model
        self.described = {f'feature{i}': 'float32' for i in range(count)}


def wrapper_of(case: dict, family: str) -> nn.Module:
    torch.manual_seed(0)
    if case['part'] != BACKBONE:
        cfg = Config.fromfile(ROOT / 'configs' / WHOLE[case['part']].format(case['arch']))
        cfg.model.backbone.init_cfg = None
        if cfg.default_scope == 'mmdet':  # of random weights, nothing reaches the usual 0.05
            cfg.model.test_cfg.score_thr = 0.0
        model = build_model(cfg.model, cfg.default_scope).eval()
        return (Detector if cfg.default_scope == 'mmdet' else Segmentor)(model).eval()
    if family == 'ours':
        return Backbone(PoolFormer(case['arch'])).eval()
    name = f'poolformer_{case["arch"]}' if family == 'timm' else family
    model = timm_features(name)
    return Features(model, len(model.feature_info)).eval()


def image_of(case: dict) -> torch.Tensor:
    torch.manual_seed(0)
    size = map(int, case['size'].split('x'))
    image = torch.randn(1, 3, *size)
    return image if case['part'] == BACKBONE else (image * 58 + 128).clamp(0, 255).byte()


def write_files(case: dict, family: str, folder: Path):
    """Write a model as everything that a contender may read; a process of its own."""
    wrapper, image = wrapper_of(case, family), image_of(case)
    torch.save(wrapper.state_dict(), folder / f'{family}.pth')
    switch_to_deploy(wrapper)
    program = graphs.record(wrapper, image, dynamic=False)
    outputs, sides = wrapper.describe(image), [[side, side] for side in image.shape[2:]]
    meta = Metadata(wrapper.kind, [], [], wrapper.input, outputs, *sides, {}, wrapper.options())
    write(program, list(outputs), folder / f'{family}.onnx', 'onnx', meta)
    # Recorded again: its translation changes a graph whose sizes depend on what is found.
    model = to_openvino(graphs.record(wrapper, image, dynamic=False), list(outputs))
    save_openvino(model, folder / f'{family}.xml', meta)
    rng = np.random.default_rng(0)
    noise = [np.roll(image.numpy(), rng.integers(0, 99), -1) for _ in range(CALIBRATION)]
    made = quantise(model, noise, lambda _: 0.0, 0.0).model
    save_openvino(made, folder / f'{family}-int8.xml', meta)


# Contenders --------------------------------------------------------------------------------


class ContenderProcess(InProcess):
    """A :class:`Contender` in a child process."""

    folder = Path()

    @classmethod
    def make(cls, case: dict, name: str):
        return Contender(case, name, cls.folder)

    def start(self) -> float:
        return self.call('start')

    def size(self) -> float:
        return self.call('size')

    def operators(self) -> dict[str, float]:
        return self.call('operators')


class Contender:
    """A model with what runs it, ready to be timed."""

    def __init__(self, case: dict, name: str, folder: Path):
        self.family, self.way = name.split(', ')
        self.file = folder / f'{self.family}{SUFFIXES[self.way]}'
        self.image = image_of(case)
        if not self.file.is_file():
            raise FileNotFoundError('its file could not be made')
        before = time.perf_counter()
        self.step = self.of_pytorch(case) if self.way in PYTORCH else self.of_file()
        self.step()
        self.seconds = time.perf_counter() - before
        self.burst()

    def of_pytorch(self, case: dict):
        reuse_freed_memory()  # as tools/test.py does
        wrapper = wrapper_of(case, self.family)
        wrapper.load_state_dict(torch.load(self.file))
        if self.way == DEPLOYED:
            switch_to_deploy(wrapper)
            model = wrapper.model
            compile_for_inference(getattr(model, 'backbone', model))
        return partial(without_gradients, wrapper, self.image)

    def of_file(self):
        if self.way in BFLOAT16:
            OpenVino.precision = 'bf16'
        self.runtime = open_model(self.file, threads=torch.get_num_threads())
        return partial(self.runtime, self.image.numpy())

    def burst(self) -> list[float]:
        return burst(self.step, 'cpu')

    def peak_memory(self) -> float | None:
        return peak_memory(self.step, 'cpu')

    def start(self) -> float:
        """Seconds from the file to the first result."""
        return self.seconds

    def size(self) -> float:
        """MiB of what has to be shipped."""
        return sum(file.stat().st_size for file in files_of(self.file)) / 2**20

    def operators(self) -> dict[str, float]:
        """Milliseconds of one call by kinds of operators, as the runtime says."""
        if self.way in PYTORCH:
            return {}
        found = of_onnx_runtime if self.file.suffix == '.onnx' else of_openvino
        sums = {}
        for kind, milliseconds in found(self.file, self.image.numpy()):
            sums[kind] = sums.get(kind, 0.0) + milliseconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def of_onnx_runtime(file: Path, image: np.ndarray):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    options.profile_file_prefix = str(file.with_suffix(''))
    session = onnxruntime.InferenceSession(str(file), options, ['CPUExecutionProvider'])
    calls = 4
    for _ in range(calls):
        session.run(None, dict(image=image))
    profile = Path(session.end_profiling())
    nodes = [event for event in json.loads(profile.read_text()) if event.get('cat') == 'Node']
    profile.unlink()
    for event in nodes:
        yield event['args']['op_name'], event['dur'] / 1e3 / calls


def of_openvino(file: Path, image: np.ndarray):
    import openvino

    options = dict(PERF_COUNT=True, INFERENCE_NUM_THREADS=torch.get_num_threads())
    options['INFERENCE_PRECISION_HINT'] = OpenVino.precision
    request = openvino.Core().compile_model(str(file), 'CPU', options).create_infer_request()
    for _ in range(3):
        request.infer(dict(image=image))
    for node in request.profiling_info:
        yield node.node_type, node.real_time.total_seconds() * 1e3


# Report ------------------------------------------------------------------------------------


def report(folder: Path):
    """Write export.md and the plot from what was measured."""
    content = json.loads((folder / 'export' / 'cpu.json').read_text())
    records = content['records']
    loads = [record['load'] for record in records if 'load' in record]
    about = content['machine']
    lines = [
        '# Speed of model files',
        '',
        'Made by `benchmarks/export_speed.py`: contenders in turns, each in a process of its own, '
        'medians of bursts, one image, files for its size alone, random weights. «folded + '
        'compiled» is `tools/test.py --deploy --compile`, of whole models too the backbone alone. '
        'RetinaNet keeps all scores, so that its NMS has the most to do. int8 was calibrated on '
        'noise: only its time counts here, [what it predicts](../guides/deploy.md) is measured '
        'elsewhere. «start» is from the file to the first result, without imports.',
        '',
        f'{machine_line(about)}; {content["cpu"]}. '
        'Load of the machine before the cases, where it was noted: '
        f'{min(loads):.1f} to {max(loads):.1f} '
        f'(the threads of one contender make {about["name"].split(", ")[-1].split()[0]}).',
        '',
        '## Targets',
        '',
        *targets_table(records, content['cpu']),
        '',
        '## All contenders',
        '',
        *all_table(records),
        '',
        '## Where the time goes',
        '',
        'Milliseconds of one call by kinds of operators, as the runtimes say, which takes longer '
        'than a call without them being asked.',
        '',
        *operators_table(records),
        '',
        plot(records, folder / 'export'),
    ]
    write_page(folder / 'export.md', lines)


def cases_of(records: list[dict]) -> dict[tuple, dict[str, dict]]:
    """What was measured, by case and by contender."""
    cases = {}
    for record in records:
        case = tuple(record[key] for key in ('part', 'arch', 'size'))
        cases.setdefault(case, {})[record['contender']] = record
    return cases


def milliseconds(case: dict, contender: str) -> float | None:
    return case.get(contender, {}).get('milliseconds')


def targets_table(records: list[dict], cpu: str) -> list[str]:
    rows = []
    for (part, arch, size), case in cases_of(records).items():
        deployed = milliseconds(case, f'ours, {DEPLOYED}')
        best = [milliseconds(case, f'ours, {way}') for way in FLOAT32]
        best = min((value for value in best if value), default=None)
        int8 = milliseconds(case, 'ours, OpenVINO int8')
        timms = milliseconds(case, 'timm, PyTorch')
        missing = '' if 'vnni' in cpu else ' (asked of CPUs with VNNI)'
        what = f'{part} {arch.upper()} {size}'
        for name, mine, theirs, least in (
            ('best file in float32', best, deployed, '≥ 1.0 × folded + compiled'),
            ('int8', int8, deployed, f'≥ 2.0 × folded + compiled{missing}'),
            ('int8', int8, timms, f'≥ 4.5 × timm{missing}'),
        ):
            if theirs:
                rows.append((what, name, least, f'{theirs / mine:.2f}' if mine else 'failed'))
    return markdown(('what', 'contender', 'target', 'reached'), rows)


def all_table(records: list[dict]) -> list[str]:
    rows = []
    for (part, arch, size), case in cases_of(records).items():
        deployed = milliseconds(case, f'ours, {DEPLOYED}')
        timms = milliseconds(case, 'timm, PyTorch')
        for name, record in case.items():
            what = f'{part} {arch.upper()} {size}'
            if 'error' in record:
                rows.append((what, name, f'failed: {record["error"]}', *[''] * 5))
                continue
            low, high = record['quartiles']
            rows.append((
                what,
                name,
                f'{record["milliseconds"]:.1f} ({low:.1f}–{high:.1f})',
                f'{deployed / record["milliseconds"]:.2f}' if deployed else '',
                f'{timms / record["milliseconds"]:.2f}' if timms else '',
                f'{record["start_seconds"]:.1f}',
                f'{record["mebibytes"]:.1f}',
                '' if record['peak_mebibytes'] is None else f'{record["peak_mebibytes"]:.0f}',
            ))  # fmt: skip
    headings = 'what', 'contender', 'ms (quartiles)', '× folded + compiled', '× timm'
    return markdown((*headings, 'start, s', 'file, MiB', 'peak MiB'), rows)


def operators_table(records: list[dict]) -> list[str]:
    rows = []
    for record in records:
        operators = list((record.get('operators') or {}).items())
        if not operators:
            continue
        first = ', '.join(f'{name} {value:.1f}' for name, value in operators[:MOST_OPERATORS])
        rest = sum(value for _, value in operators[MOST_OPERATORS:])
        what = f'{record["part"]} {record["arch"].upper()} {record["size"]}'
        rows.append((what, record['contender'], f'{first}, rest {rest:.1f}'))
    return markdown(('what', 'contender', 'ms'), rows)


def plot(records: list[dict], folder: Path) -> str:
    """A bar chart of the first case; returns its Markdown."""
    (part, arch, size), case = next(iter(cases_of(records).items()))
    chosen = [record for record in case.values() if 'error' not in record]
    chosen.sort(key=lambda record: -record['milliseconds'])
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(chosen) + 1.2))
    colours = ['tab:green' if r['contender'].startswith('ours') else 'tab:gray' for r in chosen]
    values = [record['milliseconds'] for record in chosen]
    axis.barh([record['contender'] for record in chosen], values, color=colours)
    for position, value in enumerate(values):
        axis.text(value, position, f' {value:.1f}', va='center')
    axis.set_xlabel(f'ms for one {size} image, {part} {arch.upper()}, CPU')
    axis.margins(x=0.1)
    save_figure(figure, folder / 'cpu.png')
    return '![Model files on the CPU](export/cpu.png)'


if __name__ == '__main__':
    main()
