"""What was measured on a GPU decides there: the rules on made-up numbers, and their effect."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, random_weights
from op_inputs import DEVICE, mix_inputs, needs_triton

from mmpoolformer import PoolFormer
from mmpoolformer.models import dispatch
from mmpoolformer.ops import backend, first_use, measured, pool_mix
from mmpoolformer.ops.measured import Device, Operation, TableError, decide, threshold

CASE = '16x3 float32 inference'
FAST = {CASE: 0.95}


def table_of(device=DEVICE, error_ratio=1.0, sanitizer='clean', triton=0.5, **rows):
    operation = dict(
        error_ratio=error_ratio,
        sanitizer=sanitizer,
        cases={CASE: dict(triton=triton, pytorch=1.0)},
    )
    known = dict(operations=dict(pool_mix=operation), backbone=rows)
    return dict(devices={measured.device_name(torch.device(device)): known})


# The rules.


@pytest.mark.parametrize(
    ('operation', 'decision'),
    [
        (Operation(1.1, 'clean', FAST), True),
        (Operation(1.0, 'clean', {CASE: 0.951}), False),
        (Operation(1.0, 'clean', {'32x3 float32 inference': 0.5}), False),
        (Operation(1.11, 'clean', FAST), False),
        (Operation(1.0, 'hit', FAST), False),
        (Operation(None, 'hit'), False),
        # Today's rules hold of what nobody has proven.
        (Operation(1.0, 'not run', FAST), None),
        (Operation(None, 'clean', FAST), None),
        (Operation(1.0, 'clean'), None),
    ],
)
def test_kernels_are_used_where_they_are_right_and_faster(operation, decision):
    devices = dict(here=Device({'pool_mix': operation}))
    assert decide(devices, 'here', 'pool_mix', CASE) is decision


@pytest.mark.parametrize(('error', 'sanitizer'), [(1.2, 'clean'), (1.0, 'hit')])
def test_kernels_that_are_wrong_on_one_device_are_used_on_none(error, sanitizer):
    wrong, right = Operation(error, sanitizer, FAST), Operation(1.0, 'clean', FAST)
    devices = dict(there=Device(dict(pool_mix=wrong)), here=Device(dict(pool_mix=right)))
    assert decide(devices, 'here', 'pool_mix', CASE) is False
    assert decide(devices, 'elsewhere', 'pool_mix', CASE) is False


def test_of_another_device_or_operation_nothing_is_known():
    devices = dict(there=Device(dict(pool_mix=Operation(1.0, 'clean', FAST))))
    assert decide({}, 'here', 'pool_mix', CASE) is None
    assert decide(devices, 'here', 'pool_mix', CASE) is None
    assert decide(devices, 'there', 'channel_mlp', CASE) is None


@pytest.mark.parametrize(
    ('rows', 'pixels'),
    [
        ([], 0),
        ([(100, 1, 2), (400, 1, 2)], 0),
        ([(100, 3, 2), (400, 1, 2), (900, 1, 3)], 400),
        ([(900, 1, 3), (100, 1, 2), (400, 3, 2)], 900),  # slower again in between
        ([(100, 3, 2), (400, 3, 2)], sys.maxsize),
        ([(400, 3, 2), (400, 1, 2), (900, 1, 2)], 900),  # of two types
    ],
)
def test_blocks_are_fused_from_the_size_on_where_that_is_never_slower(rows, pixels):
    assert threshold(rows) == pixels


# Their effect.


def test_the_package_ships_a_table_that_can_be_read():
    assert isinstance(measured.load(Path(measured.__file__).with_name('measured.json')), dict)


@needs_triton
@pytest.mark.parametrize(('time', 'runs'), [(0.5, True), (0.99, False)])
def test_the_table_chooses_between_kernels_and_pytorch(
    emulated, monkeypatch, write_table, time, runs
):
    monkeypatch.setattr(first_use, '_try', lambda *key: True)
    monkeypatch.setattr(first_use, '_verdicts', {})
    write_table(table_of(triton=time))
    inputs = [t.to(DEVICE) for t in mix_inputs((1, 16, 3, 5))[0]]
    with torch.no_grad():
        assert (pool_mix(*inputs)[1] is not None) is runs
    # Training was not measured there.
    assert pool_mix(*inputs)[1] is None
    monkeypatch.setenv('MMPOOLFORMER_TRITON', 'all')
    assert pool_mix(*inputs)[1] is not None


@pytest.mark.parametrize(
    ('switch', 'pays', 'pool', 'mlp'),
    [
        (None, None, True, False),
        (None, True, True, True),
        (None, False, False, False),
        ('0', True, False, False),
        ('all', False, True, True),
    ],
)
def test_the_environment_comes_first_and_the_table_before_the_defaults(
    monkeypatch, switch, pays, pool, mlp
):
    if switch:
        monkeypatch.setenv('MMPOOLFORMER_TRITON', switch)
    assert backend.is_switched_on('pool_mix', lambda: pays) is pool
    assert backend.is_switched_on('channel_mlp', lambda: pays) is mlp
    monkeypatch.setenv('MMPOOLFORMER_TRITON_MLP', '1')
    assert backend.is_switched_on('channel_mlp', lambda: pays) is (switch != '0')


def test_what_was_found_wrong_is_not_switched_on_by_itself(monkeypatch, write_table):
    monkeypatch.setattr(first_use, '_try', lambda *key: True)
    monkeypatch.setattr(first_use, '_verdicts', {})
    monkeypatch.setenv('MMPOOLFORMER_TRITON_MLP', '1')
    case = 'channel_mlp', torch.device('cpu'), (torch.float16,) * 9, 64, 256
    assert first_use.agrees(*case)
    table = table_of(sanitizer='hit')
    (known,) = table['devices'].values()
    known['operations']['channel_mlp'] = known['operations'].pop('pool_mix')
    write_table(dict(devices=dict(elsewhere=known)))
    assert not first_use.agrees(*case)


@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_small_batches_on_cuda_take_the_plain_path_where_it_was_faster(
    monkeypatch, write_table, training
):
    monkeypatch.setattr(backend, 'on_cuda', lambda x: True)
    rows = [dict(pixels=64 * 64, fused=2, plain=1), dict(pixels=2 * 64 * 64, fused=1, plain=2)]
    write_table(table_of(**{measured.DIRECTIONS[training]: rows}))
    model = random_weights(PoolFormer(TINY))

    def fuses(batch):
        return dispatch.plan_forward(model, torch.zeros(batch, 3, 64, 64, device=DEVICE)).fuse

    with torch.set_grad_enabled(training):
        assert not fuses(1) and fuses(2)
        monkeypatch.setenv('MMPOOLFORMER_TRITON', '0')
        assert fuses(1)
    monkeypatch.delenv('MMPOOLFORMER_TRITON')
    with torch.set_grad_enabled(not training):
        assert fuses(1)


def test_a_device_that_was_not_measured_fuses_every_size(monkeypatch, write_table):
    monkeypatch.setattr(backend, 'on_cuda', lambda x: True)
    write_table(table_of('meta', inference=[dict(pixels=4, fused=2, plain=1)]))
    model = PoolFormer(TINY)
    with torch.no_grad():
        assert dispatch.plan_forward(model, torch.zeros(1, 3, 32, 32)).fuse


def test_an_error_that_was_not_measured_is_null(write_table):
    write_table(table_of(error_ratio=None))
    (known,) = measured.load(measured.TABLE).values()
    assert known.operations['pool_mix'].error_ratio is None


# A table that cannot be used.


def broken(**changes):
    content = table_of(inference=[dict(pixels=4, fused=1, plain=2)])
    (device,) = content['devices'].values()
    operation = device['operations']['pool_mix']
    for key, value in changes.items():
        (operation if key in operation else device)[key] = value
    return content


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('{"devices": {', 'Expecting'),
        ([], "no dictionary 'devices'"),
        (dict(), "no dictionary 'devices'"),
        (dict(devices=dict(here=3)), "here has no dictionary 'operations'"),
        (broken(operations=[]), "no dictionary 'operations'"),
        (broken(operations=dict(pool_mix=None)), "pool_mix has no dictionary 'cases'"),
        (broken(sanitizer='fine'), "sanitizer is 'fine'"),
        (broken(error_ratio='1'), "'error_ratio' is '1'"),
        (broken(error_ratio=float('nan')), "'error_ratio' is nan"),
        (broken(cases={CASE: 0.5}), "'triton' is None"),
        (broken(cases={CASE: dict(triton=1, pytorch=0)}), "'pytorch' is 0"),
        (broken(cases={'16x3 float32': dict(triton=1, pytorch=1)}), "is 'float32', not one of"),
        (broken(backbone=dict(forward=[])), "backbone is 'forward'"),
        (broken(backbone=dict(training=None)), 'NoneType'),
        (broken(backbone=dict(training=[dict(pixels=1, fused=True)])), "'fused' is True"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_clear_error(monkeypatch, write_table, content, said):
    write_table(content)
    case = 'pool_mix', torch.device(DEVICE), (torch.float32,) * 4, 16, 3
    with pytest.raises(TableError) as error:
        first_use.agrees(*case)
    message = str(error.value)
    assert said in message and '\n' not in message
    assert 'measured.json' in message and 'gpu_acceptance.py tune' in message
    monkeypatch.setenv('MMPOOLFORMER_TRITON', '0')
    assert not first_use.agrees(*case)


def test_a_table_that_is_not_there_is_the_same_error(tmp_path):
    with pytest.raises(TableError, match='No such file'):
        measured.load(tmp_path / 'none.json')
