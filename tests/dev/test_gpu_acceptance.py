"""What proves the kernels on a GPU: its rules on made-up findings, and all of it on the CPU."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from gpu import stand_ins
from gpu.pack import MOST_BYTES, pack
from gpu.rules import LARGEST, device_entry, error_ratio, is_wrong, write_table
from helpers import ROOT, start_tool

from mmpoolformer.ops import backend, first_use, measured

needs_triton = pytest.mark.skipif(not backend.SUPPORTED, reason='needs torch 2.8 or later')


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))


# The rules.


@pytest.mark.parametrize(
    ('actual', 'plain', 'ratio'),
    [
        (2e-3, 1e-3, 2.0),
        (3e-7, 1e-7, 3e-2),  # float32: both are exact
        (float('nan'), 1e-3, LARGEST),
        (float('inf'), 1e-3, LARGEST),
        (1e-3, float('nan'), LARGEST),
        (0.0, 1e-3, 1 / LARGEST),
    ],
)
def test_an_error_counts_in_those_of_the_plain_definition(actual, plain, ratio):
    assert error_ratio(actual, plain) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ('record', 'wrong'),
    [
        (dict(ratio=1.1, refused=[], sanitizer='clean'), False),
        (dict(ratio=1.11), True),
        (dict(sanitizer='hit'), True),
        (dict(sanitizer='not run'), False),
        (dict(refused=['pool_mix']), True),
        (dict(error='RuntimeError: '), True),
        (dict(contender='timm', failed='OutOfMemoryError'), False),
        (dict(contender='ours, compiled', failed='OutOfMemoryError'), True),
    ],
)
def test_what_fails_a_step(record, wrong):
    assert is_wrong(record) is wrong


FOUND = [
    dict(operation='pool_mix', case='64x3 float32 training', ratio=0.9, pytorch=1e-7, triton=1e-7),
    dict(operation='pool_mix', setting='float32', ratio=1.05),
    dict(operation='pool_mix', sanitizer='clean', cause=''),
    dict(operation='pool_mix', case='64x3 float32 training', pytorch=2.0, triton=1.0, used=True),
    dict(operation='pool_mix', case='64x3 float32 inference', pytorch=1.0, triton=1.0, used=False),
    dict(operation='group_norm', sanitizer='hit', cause='Invalid __global__ write'),
    dict(direction='training', setting='float32', pixels=1024, fused=2.0, plain=1.0),
    dict(direction='training', setting='float32', pixels=4096, fused=1.0, plain=2.0),
    dict(seconds=3.0),
]


def test_findings_become_a_table_that_decides(tmp_path):
    path = tmp_path / 'measured.json'
    write_table(path, 'another', {}, device_entry([]))
    write_table(path, 'here', dict(torch='2.11'), device_entry(FOUND))
    devices = measured.load(path)
    assert set(devices) == {'another', 'here'}
    mix = devices['here'].operations['pool_mix']
    assert mix.error_ratio == 1.05 and mix.sanitizer == 'clean' and len(mix.time_ratios) == 2
    assert devices['here'].fused_pixels == dict(training=4096)
    decisions = {
        (name, direction): measured.decide(devices, 'here', name, f'64x3 float32 {direction}')
        for name in ('pool_mix', 'group_norm', 'channel_mlp')
        for direction in measured.DIRECTIONS
    }
    assert decisions == {
        ('pool_mix', 'training'): True,
        ('pool_mix', 'inference'): False,
        ('group_norm', 'training'): False,
        ('group_norm', 'inference'): False,
        ('channel_mlp', 'training'): None,
        ('channel_mlp', 'inference'): None,
    }


@pytest.mark.parametrize(
    ('code', 'output', 'kernels', 'said'),
    [
        (0, '========= ERROR SUMMARY: 0 errors', ['pool_mix'], 'clean'),
        (0, '========= ERROR SUMMARY: 0 errors', [], 'not run'),
        (
            9,
            '========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n'
            '========= ERROR SUMMARY: 3 errors',
            ['pool_mix'],
            'hit',
        ),
        (1, '========= ERROR SUMMARY: 1 error', ['pool_mix'], 'hit'),
        (1, '========= ERROR SUMMARY: 0 errors', ['pool_mix'], 'not run'),
        (1, 'Error: Device not supported', [], 'not run'),
    ],
)
def test_what_the_sanitizer_says(code, output, kernels, said):
    from gpu.children import verdict

    found = verdict('pool_mix', code, output, [dict(kernels=kernels)])
    assert found['sanitizer'] == said
    assert said != 'hit' or output.count('\n') == 0 or 'Invalid __global__ write' in found['cause']


# The command, with Triton's interpreter.


@pytest.fixture
def run(tmp_path):
    """Run the command in a process forked from this one; its exit code and what it printed."""

    def run(*arguments):
        log = tmp_path / 'log'
        process = start_tool('gpu_acceptance', *arguments, log=log, env={})
        process.join()
        return process.exitcode, log.read_text()

    return run


def found_in(out):
    return [json.loads(line) for line in (out / 'results.jsonl').read_text().splitlines()]


@needs_triton
def test_correct_passes_on_the_cpu(run, tmp_path):
    code, printed = run('correct', '--out', tmp_path)
    assert code == 0, printed[-3000:]
    records = found_in(tmp_path)
    ran = {name for record in records for name in record.get('kernels', ())}
    assert ran == set(first_use.TRIALS)
    assert {r['sanitizer'] for r in records if 'cause' in r} == {'not run'}
    (fallback,) = [r for r in records if 'warnings' in r]
    assert fallback['kernels'] == [] and fallback['warnings'] == 1
    report = (tmp_path / 'report.md').read_text()
    assert '## correct: backbone-amp-float16' in report and '| decision |' in report
    known = measured.load(tmp_path / 'measured.json')['cpu']
    assert known.operations['pool_mix'].error_ratio <= measured.MOST_ERROR


@needs_triton
def test_kernels_that_are_wrong_fail_the_command_and_are_switched_off(run, tmp_path, monkeypatch):
    assert backend.load()
    right = backend.kernels().pool_mix
    monkeypatch.setattr(
        backend.kernels(), 'pool_mix', lambda *a: (right(*a)[0] * 1.01, *right(*a)[1:])
    )
    steps = '--steps', 'operations-float32', 'table'
    code, printed = run('correct', *steps, '--out', tmp_path)
    assert code == 1 and 'failed: operations-float32' in printed
    devices = measured.load(tmp_path / 'measured.json')
    assert measured.decide(devices, 'elsewhere', 'pool_mix', 'any') is False


@needs_triton
def test_times_and_sizes_fill_the_table(run, tmp_path):
    for command in (['tune', '--steps', 'operations-amp-float16'], ['small']):
        code, printed = run(*command, '--out', tmp_path)
        assert code == 0, printed[-3000:]
    timed = [record for record in found_in(tmp_path) if 'floor' in record]
    assert {record['operation'] for record in timed} == set(first_use.TRIALS)
    known = measured.load(tmp_path / 'measured.json')['cpu']
    assert {case for op in known.operations.values() for case in op.time_ratios} == {
        record['case'] for record in timed
    }
    assert set(known.fused_pixels) == set(measured.DIRECTIONS)


@needs_triton
def test_a_step_that_does_not_exist_is_named(run, tmp_path):
    code, printed = run('small', '--steps', 'size', '--out', tmp_path)
    assert code == 2 and "no steps ['size']: sizes" in printed


@needs_triton
@pytest.mark.parametrize('code', [1, -11])
def test_a_step_that_dies_at_once_has_failed_and_its_old_findings_are_gone(
    tmp_path, monkeypatch, code
):
    from gpu import steps

    work = steps.Run('correct', tmp_path, None, None)
    work.run_step('ceilings', lambda: [dict(rate=1.0)])
    assert steps.failures(work.latest(), 'correct') == []
    died = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(steps.subprocess, 'run', lambda *args, **options: died)
    work.run_step_apart('ceilings')
    found = work.latest()
    assert steps.failures(found, 'correct') == ['ceilings']
    assert not any('rate' in record for record in found['correct', 'ceilings'])


# A machine without mmcv, mmdet and what they import.

PRESENT = (
    'torch', 'torchgen', 'functorch', 'triton', 'numpy', 'numpy.libs', 'cv2', 'sympy', 'mpmath',
    'networkx', 'jinja2', 'markupsafe', 'filelock', 'fsspec', 'typing_extensions.py', 'nvidia',
    'cuda',
)  # fmt: skip
TRAIN_A_STEP = """
import sys
sys.path[:0] = [{packed!r}, {root!r}, {root!r} + '/dev', {root!r} + '/benchmarks']
sys.path.append({present!r})
from gpu import stand_ins
stand_ins.install()
import torch
torch.set_num_threads(1)
from common import build_for_training
from gpu.speed_steps import use_python_focal_loss
use_python_focal_loss()
from mmdet.models.losses import FocalLoss
from mmdet.models.losses import focal_loss as losses
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
import mmcv, mmpoolformer
assert mmcv.__file__.startswith({packed!r}) and stand_ins.is_stand_in('mmcv._ext')

# On a GPU mmdet takes the function that was replaced, here another one.
pred, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 4])
replaced = losses.sigmoid_focal_loss(pred, target, avg_factor=2.0)
torch.testing.assert_close(replaced, FocalLoss()(pred, target, avg_factor=2.0))

model = build_for_training('retinanet_poolformer-s12_fpn_1x_coco.py')
sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
sample.gt_instances = InstanceData(
    bboxes=torch.tensor([[5.0, 5, 40, 40]]), labels=torch.tensor([3])
)
losses = model.loss(torch.randn(1, 3, 64, 64), [sample])
sum(sum(loss) for loss in losses.values()).backward()
norms = [p.grad.norm() for p in model.backbone.parameters() if p.grad is not None]
assert all(norm.isfinite() for norm in norms) and sum(norms) > 0

from mmcv.ops import nms
try:
    nms(torch.rand(2, 4), torch.rand(2), 0.5)
except stand_ins.AbsentError as error:
    print('refused:', error)
"""


@needs_triton
def test_the_packed_folder_trains_a_detector_where_nothing_else_is(tmp_path):
    size = pack(tmp_path / 'packed')
    files = [path for path in (tmp_path / 'packed').rglob('*') if path.is_file()]
    assert size == sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert not [path for path in files if path.suffix == '.so']
    present = tmp_path / 'present'
    present.mkdir()
    site = Path(sysconfig.get_paths()['purelib'])
    for name in PRESENT:
        if (site / name).exists():
            (present / name).symlink_to(site / name)
    for info in site.glob('*.dist-info'):
        if info.name.split('-')[0] in ('torch', 'numpy', 'triton'):
            (present / info.name).symlink_to(info)
    program = TRAIN_A_STEP.format(
        packed=str(tmp_path / 'packed'), root=str(ROOT), present=str(present)
    )
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'refused: mmcv._ext.nms is not on this machine' in done.stdout


def test_nothing_is_packed_over_a_folder(tmp_path):
    with pytest.raises(RuntimeError, match='is there already'):
        pack(tmp_path)


def test_a_stand_in_is_there_where_nothing_else_is(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    stand_ins.install(('no_such_library', 'torch'))
    from no_such_library.part import Thing

    class Inherits(Thing):
        pass

    for use in (Thing, Inherits, Thing.CONSTANT):
        with pytest.raises(stand_ins.AbsentError, match=r'no_such_library\.part\.Thing'):
            use(3)
    assert stand_ins.is_stand_in('no_such_library') and not stand_ins.is_stand_in('torch')
    assert torch.zeros(1).numel() == 1
