"""``benchmarks/speed.py`` writes its report. How fast anything is, no test asks."""

import json
import os
from types import SimpleNamespace

import mmdet.models  # noqa: F401 (once, not in each of the detector's processes)
import pytest
import timm
import torch
from helpers import load_tool, needs_whole_graphs, run_tool
from torch import nn

create_model = timm.create_model


def create_smaller(name, **options):
    """The contenders from elsewhere with a block or two for each stage."""
    if name.startswith('swin'):
        options.update(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 1, 1))
    elif name.startswith('pvt'):
        options.update(depths=(1, 1, 1, 1))
    elif name.startswith('convnext'):
        options.update(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    elif name.startswith('resnet'):
        options.update(layers=(1, 1, 1, 1))
    return create_model(name, **options)


def measured(folder, mode='inference'):
    return json.loads((folder / 'benchmarks' / f'cpu-{mode}.json').read_text())['records']


def test_report(tmp_path, monkeypatch):
    monkeypatch.setattr(timm, 'create_model', create_smaller)  # their processes are forked
    small = '--archs', 's12', '--sizes', '64x64', '--rounds', '1', '--no-compile', '--out', tmp_path
    run_tool('speed', *small, '--dtypes', 'float32', '--modes', 'inference', 'training')
    records = measured(tmp_path) + measured(tmp_path, 'training')
    contenders = {(r['mode'], r['contender']) for r in records}
    names = {'timm', 'ours', 'ours, plain', 'resnet50', 'swin_t', 'pvt_v2_b1', 'convnext_tiny'}
    names.add('convolutions alone')
    assert contenders == {(mode, name) for mode in ('inference', 'training') for name in names}
    assert all(r['milliseconds'] > 0 and len(r['quartiles']) == 2 for r in records)
    report = (tmp_path / 'benchmarks.md').read_text()
    assert 's12 float32 64x64 1' in report and 'not measured' in report

    run_tool('speed', *small, '--dtypes', 'bfloat16', '--modes', 'detector')
    assert measured(tmp_path) + measured(tmp_path, 'training') == records
    assert [r['contender'] for r in measured(tmp_path, 'detector')] == ['timm', 'ours']
    assert '- cpu training: ' in (tmp_path / 'benchmarks.md').read_text()


@pytest.fixture
def written(tmp_path):
    """``write`` of the benchmark, and the file of two cases."""
    path, write = tmp_path / 'benchmarks' / 'cpu-inference.json', load_tool('speed')['write']
    write(path, [record_of('s24', 5.0)])
    write(path, [record_of('s12', 2.0)])
    return path, write


def record_of(arch, milliseconds):
    case = dict(device='cpu', mode='inference', arch=arch, dtype='float32', size='64x64', batch=1)
    return dict(case, contender='ours', milliseconds=milliseconds)


def test_a_case_that_is_measured_again_is_replaced_and_the_others_stay(written, tmp_path):
    path, write = written
    write(path, [record_of('s12', 3.0)])
    assert measured(tmp_path) == [record_of('s12', 3.0), record_of('s24', 5.0)]


def test_rows_of_another_machine_are_not_mixed_with_those_of_this(written, tmp_path, capsys):
    path, _ = written
    content = json.loads(path.read_text())
    content['machine']['name'] = 'Abacus, 1 thread'
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        run_tool('speed', '--modes', 'inference', '--out', tmp_path)
    assert stop.value.code == 2 and 'holds rows of Abacus, 1 thread' in capsys.readouterr().err
    assert json.loads(path.read_text()) == content


def test_a_contender_that_fails_leaves_its_row_and_the_others_go_on(tmp_path, monkeypatch):
    def create(name, **options):
        if name.startswith('pvt'):
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        if name.startswith('swin'):
            os._exit(9)  # as a process does that the kernel kills
        return create_smaller(name, **options)

    monkeypatch.setattr(timm, 'create_model', create)
    small = '--archs', 's12', '--sizes', '32x32', '--rounds', '1', '--no-compile'
    run_tool('speed', *small, '--dtypes', 'float32', '--modes', 'inference', '--out', tmp_path)
    records = measured(tmp_path)
    errors = {r['contender']: r['error'] for r in records if 'error' in r}
    assert errors == {
        'pvt_v2_b1': 'OutOfMemoryError: CUDA out of memory.',
        'swin_t': 'its process ended without an answer',
    }
    assert {r['contender'] for r in records if r.get('milliseconds')} >= {'timm', 'ours'}
    assert '| pvt_v2_b1 | failed: OutOfMemoryError' in (tmp_path / 'benchmarks.md').read_text()


class Mortal:
    """A contender of the CPU whose process ends in its second turn, or while it waits."""

    def __init__(self, case, name):
        self.name, self.turns = name, 0

    def burst(self):
        self.turns += 1
        if self.name == 'dies in its turn' and self.turns == 2:
            os._exit(9)
        return [1.0, 2.0]

    def peak_memory(self):
        return 3.0


def test_a_contender_whose_process_is_killed_later_leaves_its_row(monkeypatch):
    speed = load_tool('speed')
    names = ['lives', 'dies in its turn', 'dies while it waits']
    processes, scope = {}, speed['measure_case'].__globals__

    class Process(speed['ContenderProcess']):
        def __init__(self, case, name):
            super().__init__(case, name)
            processes[name] = self.process

        def burst(self):
            if self.process is processes['lives']:
                processes['dies while it waits'].kill()
                processes['dies while it waits'].join()
            return super().burst()

    patched = dict(Contender=Mortal, ContenderProcess=Process, names=lambda *_: names)
    for name, value in patched.items():
        monkeypatch.setitem(scope, name, value)
    case = dict(device='cpu', batch=1)
    rows = speed['measure_case'](case, SimpleNamespace(rounds=3, no_compile=True))
    gone = 'its process ended without an answer'
    assert {row['contender']: row.get('error') for row in rows} == dict.fromkeys(
        names[1:], gone
    ) | {'lives': None}
    assert rows[0]['milliseconds'] == 1.5


class OneConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, x):
        return [super().forward(x)]


@needs_whole_graphs
def test_compiled_contenders_of_many_cases_in_one_process_are_compiled(monkeypatch):
    # As on CUDA, where all cases share a process: Dynamo gives up after eight variants.
    speed = load_tool('speed')
    compiled, compile_ = [], torch.compile

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', lambda model, **_: compile_(model, backend=backend))
    patched = dict(
        names=lambda *_: ['ours, compiled'],
        ContenderProcess=speed['Contender'],
        backbone=lambda *_: OneConvolution(),
    )
    for name, value in patched.items():
        monkeypatch.setitem(speed['measure_case'].__globals__, name, value)
    for count in range(1, 13):
        case = dict(device='cpu', mode='training', arch='s12', dtype='float32', size='32x32')
        (record,) = speed['measure_case'](
            dict(case, batch=count), SimpleNamespace(rounds=1, no_compile=False)
        )
        assert 'error' not in record and len(compiled) == count


def test_errors(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool('speed', '--sizes', '512', '--out', tmp_path)
    assert stop.value.code == 2 and 'HEIGHTxWIDTH' in capsys.readouterr().err
