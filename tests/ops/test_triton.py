"""The Triton kernels: their fake implementations, and compiled for GPUs that are not there."""

import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from helpers import ROOT, TINY, needs_whole_graphs, random_weights
from op_inputs import DEVICE, LAYOUTS, mlp_inputs, needs_triton

from mmpoolformer import PoolFormer


@needs_triton
def test_custom_ops_have_matching_fake_implementations(interpreted, triton_ops):
    for op, arguments in calls_of_all_ops().items():
        torch.library.opcheck(op.default, arguments, test_utils=['test_schema', 'test_faketensor'])


def calls_of_all_ops():
    """Each custom op with arguments, on the device of the tests."""
    inputs, sample_scale, grad = mlp_inputs(16, 5, 6, torch.float16)
    channels_last = LAYOUTS['channels-last']
    x, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, grad = (
        t.to(DEVICE) for t in (*inputs, grad)
    )
    x, grad, fc1, fc2 = channels_last(x), channels_last(grad), fc1.flatten(1), fc2.flatten(1)
    ops = torch.ops.mmpoolformer
    mix = x, norm_weight, scale, sample_scale, 3, 1e-5, x.dtype
    y, moments, stats = ops.pool_mix(*mix)
    parameters = norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, scale, sample_scale
    mlp = y, stats, *parameters, 1e-5, x.dtype
    _, mlp_moments = ops.channel_mlp(*mlp)
    return {
        ops.partial_stats: (x,),
        ops.pool_mix: mix,
        ops.pool_mix_backward: (grad, x, moments, norm_weight, scale, sample_scale, 3),
        ops.group_norm: (y, stats, norm_weight, norm_bias, 1e-5, x.dtype),
        ops.group_norm_backward: (grad, y, mlp_moments, norm_weight),
        ops.channel_mlp: mlp,
        ops.channel_mlp_backward: (grad, y, mlp_moments, *parameters),
    }


@needs_triton
@pytest.mark.parametrize(
    ('batch_size', 'tiles', 'parts'), [(1, 4096, 1024), (2, 4096, 512), (3, 4096, 512), (1, 5, 8)]
)
def test_few_samples_are_computed_in_more_parts(triton_ops, batch_size, tiles, parts):
    from mmpoolformer.ops.triton.common import count_parts

    assert count_parts(batch_size, tiles) == parts


@needs_triton
@pytest.mark.parametrize('way', ['directly', 'compiled'])
def test_every_op_launches_on_the_device_of_its_tensors(interpreted, triton_ops, monkeypatch, way):
    # Triton itself takes the current device.
    calls, current, launched_on = calls_of_all_ops(), [], []

    @contextmanager
    def device_of(x):
        current.append(x)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: launched_on.append(current[-1] if current else None)

    monkeypatch.setattr(torch.cuda, 'device_of', device_of)
    for room in ('statistics', 'pool_mix', 'channel_mlp', 'group_norm'):
        module = import_module(f'mmpoolformer.ops.triton.{room}')
        for name in [name for name in dir(module) if name.endswith('_kernel')]:
            monkeypatch.setattr(module, name, Kernel())
    for op, arguments in calls.items():
        name = op.__name__
        launched_on.clear()
        (op if way == 'compiled' else getattr(triton_ops, name))(*arguments)
        assert launched_on, name
        assert all(x is not None and x.shape == arguments[0].shape for x in launched_on), name


@needs_triton
@needs_whole_graphs
@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_backbone_with_kernels_compiles_without_a_graph_break(interpreted, training):
    model = PoolFormer(TINY, out_indices=(0, 1), drop_path_rate=0.2)
    model = random_weights(model, layer_scale=1.0).train(training).to(DEVICE)
    image = torch.randn(2, 3, 32, 40, device=DEVICE)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def features(function):
        torch.manual_seed(0)
        with torch.autocast(DEVICE, torch.float16):
            return function(image)

    torch._dynamo.reset()
    with torch.set_grad_enabled(training):
        expected = features(model)
        actual = features(torch.compile(model, backend=backend, fullgraph=True))
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e, rtol=1e-2, atol=1e-2)
    if training:
        torch._dynamo.reset()
        sum(f.sum() for f in features(torch.compile(model, backend='aot_eager'))).backward()
        assert model.network[0][0].norm1.weight.grad.isfinite().all()
    code = ''.join(graph.print_readable(print_output=False) for graph in graphs)
    assert all(f'mmpoolformer.{name}' in code for name in ('pool_mix', 'group_norm', 'channel_mlp'))


# A launch is left out where each of its constants, types and absent arguments was compiled in
# another one of its kernel: the script itself compiles all combinations.
COMPILE_ONCE = """
import sys
from types import SimpleNamespace
sys.path.insert(0, {folder!r})
import compile_kernels
compile_, seen = compile_kernels.compile, set()

def compile_once(source, target, options):
    parts = {{**source.signature, **source.constants, **options}}
    parts = {{(source.fn.__name__, str(name), str(value)) for name, value in parts.items()}}
    if parts <= seen:
        return SimpleNamespace(metadata=SimpleNamespace(shared=0))
    seen.update(parts)
    return compile_(source, target=target, options=options)

compile_kernels.compile = compile_once
compile_kernels.main({chip})
"""


@needs_triton
@pytest.mark.parametrize('chip', [80, 90])
def test_kernels_compile_for_gpus(chip):
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    code = COMPILE_ONCE.format(folder=str(ROOT / 'dev'), chip=chip)
    run = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'compiled' in run.stdout
