"""Kernels run where they computed what PyTorch computes, and nowhere else."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from gpu import interpreter
from op_inputs import DEVICE, mix_inputs, mlp_inputs, needs_triton, relative_error

from mmpoolformer.ops import channel_mlp, first_use, group_norm, pool_mix

pytestmark = needs_triton
SIZES = dict(pool_mix=(8, 3), group_norm=(8,), channel_mlp=(8, 16))


@pytest.fixture(autouse=True)
def trial(emulated, monkeypatch):
    """No verdict so far, and a small map for the next one."""
    monkeypatch.setattr(first_use, '_verdicts', {})
    monkeypatch.setattr(first_use, '_causes', set())
    interpreter.try_small_maps(monkeypatch.setattr)


def inputs_of(channels=16, dtype=torch.float32):
    return [t.to(DEVICE) for t in mix_inputs((2, channels, 4, 5), dtype=dtype)[0]]


def runs_kernels(inputs=None, **options):
    return pool_mix(*(inputs or inputs_of()), **options)[1] is not None


def fail(*_):
    raise RuntimeError('fatal error: Python.h: No such file or directory\nand more of it')


def test_kernels_that_agree_run(log):
    assert runs_kernels() and not log


@pytest.mark.parametrize('name', ['pool_mix', 'pool_mix_backward'])
def test_kernels_that_fail_are_left_out_with_one_message(name, triton_ops, monkeypatch, log):
    inputs = [t.requires_grad_() for t in inputs_of()]
    monkeypatch.setattr(triton_ops, name, fail)
    assert not runs_kernels(inputs) and not runs_kernels(inputs_of(24))
    pool_mix(*inputs)[0].sum().backward()
    assert inputs[0].grad.isfinite().all()
    ((level, message),) = log
    assert level == 'WARNING'
    assert all(part in message for part in ('pool_mix', 'Python.h', 'MMPOOLFORMER_TRITON=0'))
    assert '\n' not in message


@pytest.mark.parametrize('name', ['partial_stats', 'group_norm', 'group_norm_backward'])
def test_a_norm_whose_kernels_fail_is_pytorchs(name, triton_ops, monkeypatch, log):
    x, weight, bias, _ = inputs_of()
    expected = group_norm(x, weight, bias)
    assert not log
    first_use._verdicts.clear()
    monkeypatch.setattr(triton_ops, name, fail)
    assert relative_error(group_norm(x, weight, bias), expected) < 1e-6
    assert 'group_norm (16, float32)' in log[0][1]


@pytest.mark.parametrize('factor', [1.01, float('nan')])
@pytest.mark.parametrize('name', ['pool_mix', 'pool_mix_backward'])
def test_kernels_with_other_numbers_are_left_out(name, factor, triton_ops, monkeypatch, log):
    right = getattr(triton_ops, name)
    monkeypatch.setattr(triton_ops, name, lambda *a: (right(*a)[0] * factor, *right(*a)[1:]))
    assert not runs_kernels()
    assert 'off by' in log[0][1] or 'other numbers' in log[0][1]


def test_memory_that_does_not_suffice_is_no_verdict(triton_ops, monkeypatch, log):
    def exhaust(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(triton_ops, 'pool_mix', exhaust)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            runs_kernels()
    assert runs_kernels() and not log


@pytest.mark.parametrize(('name', 'sizes'), [*SIZES.items()])
def test_a_trial_has_the_same_numbers_every_time(name, sizes):
    example = first_use.TRIALS[name].example
    once, again = (example(torch.Generator().manual_seed(0), *sizes) for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_there_is_a_verdict_for_every_case_and_one_trial_for_each(monkeypatch):
    tried = []
    monkeypatch.setattr(first_use, '_try', lambda *key: tried.append(key) or False)
    monkeypatch.setattr(first_use, '_is_captured', lambda device: False)
    for _ in range(2):
        runs_kernels()
        runs_kernels(inputs_of(24))
        runs_kernels(inputs_of(dtype=torch.float16))
        runs_kernels(pool_size=5)
        first_use.agrees('pool_mix', torch.device('cuda', 1), (torch.float32,) * 4, 16, 3)
    assert len(tried) == len(set(tried)) == 5


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch):
    tried, capturing = [], True
    monkeypatch.setattr(first_use, '_try', lambda *key: tried.append(key) or True)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: capturing)
    case = 'pool_mix', torch.device('cuda', 0), (torch.float32,) * 4, 16, 3
    assert not first_use.agrees(*case) and not tried
    capturing = False
    assert first_use.agrees(*case) and len(tried) == 1


@pytest.mark.parametrize(('chip', 'tried'), [((7, 5), 0), ((8, 0), 1), ((9, 0), 1)])
def test_chips_that_nothing_was_compiled_for_are_left_to_pytorch(monkeypatch, log, chip, tried):
    compared = []
    monkeypatch.setattr(first_use, '_is_captured', lambda device: False)
    monkeypatch.setattr(first_use, '_difference', lambda *key: compared.append(key))
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: chip)
    case = 'pool_mix', torch.device('cuda', 0), (torch.float32,) * 4, 16, 3
    assert first_use.agrees(*case) == bool(tried) == bool(compared)
    assert not log


def refuse(_):
    raise AssertionError('a hook of the caller sees the trial')


MODES = {
    'no_grad': torch.no_grad,
    'inference_mode': torch.inference_mode,
    'autocast': lambda: torch.autocast(DEVICE, torch.bfloat16),
    'saved tensors hooks': lambda: torch.autograd.graph.saved_tensors_hooks(refuse, refuse),
    'fake tensors': lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
}


@pytest.mark.parametrize('mode', MODES)
def test_the_trial_has_none_of_the_callers_modes(mode, log):
    state = torch.get_rng_state()
    with MODES[mode]():
        case = 'pool_mix', torch.device(DEVICE), (torch.float32,) * 4, 16, 3
        assert first_use.agrees(*case)
    assert not log and torch.equal(torch.get_rng_state(), state)


def test_the_trial_is_done_while_compiling_and_no_part_of_the_graph(monkeypatch):
    tried, graphs = [], []
    try_ = first_use._try
    monkeypatch.setattr(first_use, '_try', lambda *key: tried.append(try_(*key)) or tried[-1])

    def backend_of(graph, _):
        graphs.append(graph)
        return graph.forward

    x, *vectors = inputs_of()
    vectors = [torch.nn.Parameter(v) for v in vectors]
    compiled = torch.compile(pool_mix, backend=backend_of, fullgraph=True)
    with torch.no_grad():
        y, stats = compiled(x, *vectors)
        assert tried == [True] and stats is not None
        assert relative_error(y, pool_mix(x, *vectors)[0]) < 1e-6
    assert 'mmpoolformer.pool_mix' in graphs[0].code and tried == [True]


def test_a_channel_mlp_that_fails_leaves_its_pytorch_form(triton_ops, monkeypatch, log):
    monkeypatch.setenv('MMPOOLFORMER_TRITON_MLP', '1')
    (x, *parameters), sample_scale, _ = mlp_inputs(16, 4, 5, torch.float16)
    x, *parameters = (t.to(DEVICE) for t in (x, *parameters))
    expected = channel_mlp(x, None, *parameters, sample_scale)
    assert not log
    first_use._verdicts.clear()
    monkeypatch.setattr(triton_ops, 'channel_mlp', fail)
    actual = channel_mlp(x, None, *parameters, sample_scale)
    assert 'channel_mlp (16, 64, float16)' in log[0][1]
    assert relative_error(actual, expected) < 2e-3


def test_an_old_chip_has_no_kernels_of_the_channel_mlp(monkeypatch, log):
    monkeypatch.setenv('MMPOOLFORMER_TRITON_MLP', '1')
    old = SimpleNamespace(major=7, shared_memory_per_block_optin=96 * 1024)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: old)
    assert not first_use.agrees('channel_mlp', torch.device(DEVICE), (torch.float16,) * 9, 16, 64)
    assert not log
