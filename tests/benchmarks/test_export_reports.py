"""The makers of the reports on model files. How fast anything is, no test asks."""

import json

import pytest
from helpers import load_tool, require_export, run_tool

require_export()

TINY = dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))


def test_speed(tmp_path, monkeypatch, capsys):
    from mmpoolformer.models import metaformer

    tool = load_tool('export_speed')
    scope = tool['main'].__globals__
    backbone = metaformer.PoolFormer
    monkeypatch.setitem(scope, 'PoolFormer', lambda _: backbone(TINY))
    monkeypatch.setitem(scope, 'families', lambda _: ['ours'])
    monkeypatch.setitem(scope, 'compile_for_inference', lambda _: None)  # minutes
    arguments = ['--archs', 's12', '--parts', 'backbone', '--rounds', '1', '--out', str(tmp_path)]
    monkeypatch.setattr('sys.argv', ['export_speed.py', *arguments, '--sizes', '64x64'])
    tool['main']()
    records = json.loads((tmp_path / 'export' / 'cpu.json').read_text())['records']
    ways = {'PyTorch', 'folded + compiled', 'ONNX Runtime', 'OpenVINO', 'OpenVINO int8'}
    assert {record['contender'].removeprefix('ours, ') for record in records} >= ways
    for record in records:
        assert record['milliseconds'] > 0 and record['start_seconds'] > 0, record
        assert record['mebibytes'] > 0
        assert bool(record['operators']) == (
            'ONNX' in record['contender'] or 'VINO' in record['contender']
        )
    page = (tmp_path / 'export.md').read_text()
    assert '| backbone S12 64x64 | int8 | ≥ 2.0 × folded + compiled' in page
    assert (tmp_path / 'export' / 'cpu.png').is_file()

    # Another case comes beside it, of the same machine alone.
    monkeypatch.setitem(scope, 'measure_case', lambda *_: [dict(records[0], size='96x96')])
    monkeypatch.setattr('sys.argv', ['export_speed.py', *arguments, '--sizes', '96x96'])
    tool['main']()
    content = json.loads((tmp_path / 'export' / 'cpu.json').read_text())
    assert content['records'] == [*records, dict(content['records'][-1], size='96x96')]
    content['machine']['name'] = 'another'
    (tmp_path / 'export' / 'cpu.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        tool['main']()
    assert stop.value.code == 2 and 'holds rows of another;' in capsys.readouterr().err


def test_what_of_the_zoo_exports(tmp_path, capsys):
    rows = [
        ('whole', dict(config='mmdet::a/x.py', result='whole, all sizes', differences='boxes 0')),
        ('raw', dict(config='mmdet::b/x.py', result='--raw', reasons={'whole, all sizes': 'why'})),
        ('dead', dict(error='took more than 900 s')),
        ('none', dict(skipped='no config swaps')),
    ]
    report = load_tool('export_zoo')['report']
    versions = dict(mmdet='3', mmseg='1', torch='2')
    page = '\n'.join(report([dict(row, method=name) for name, row in rows], 5, versions, 60))
    assert '**1 of 3 methods (33.3 %) export whole**, 1 of them for all sizes; 1 more' in page
    assert '1 of 5 folders hold no config' in page and '1 were not tried' in page
    assert '| raw | x | --raw |  | why |' in page
    assert '| dead |  | not at all |  | took more than 900 s |' in page


def test_a_method_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match="no method has 'nonsense' in its name"):
        run_tool('export_zoo', '--only', 'nonsense', '--work-dir', tmp_path)
