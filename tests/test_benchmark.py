"""``tools/benchmark.py`` writes its report. How fast anything is, no test asks."""

import json
import subprocess
import sys

from conftest import ROOT


def benchmark(out, *options):
    command = [sys.executable, ROOT / 'tools' / 'benchmark.py', '--out', out, *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_report(tmp_path):
    small = '--archs', 's12', '--sizes', '64x64', '--rounds', '2', '--dtypes', 'float32'
    run = benchmark(tmp_path, *small, '--modes', 'inference', 'training')
    assert run.returncode == 0, run.stderr
    records = json.loads((tmp_path / 'benchmarks' / 'cpu.json').read_text())['records']
    contenders = {(r['mode'], r['contender']) for r in records}
    others = {'timm', 'ours', 'ours, plain', 'resnet50', 'swin_t', 'pvt_v2_b1', 'convnext_tiny'}
    assert contenders == {(m, c) for m in ('inference', 'training') for c in others} | {
        ('inference', 'convolutions alone')
    }
    assert all(r['milliseconds'] > 0 and len(r['quartiles']) == 2 for r in records)
    report = (tmp_path / 'benchmarks.md').read_text()
    assert 's12 float32 64x64 1' in report and 'not measured' in report

    # A second run replaces its own cases and keeps the others.
    benchmark(tmp_path, *small[:-1], 'bfloat16', '--modes', 'detector')
    kept = json.loads((tmp_path / 'benchmarks' / 'cpu.json').read_text())['records']
    assert [r for r in kept if r['mode'] != 'detector'] == records
    assert [r['contender'] for r in kept if r['mode'] == 'detector'] == ['timm', 'ours']


def test_errors(tmp_path):
    run = benchmark(tmp_path, '--sizes', '512')
    assert run.returncode == 2 and 'HEIGHTxWIDTH' in run.stderr and 'Traceback' not in run.stderr
