"""Where the Triton kernels may run."""

import logging
import subprocess
import sys

import pytest
import torch
from op_inputs import DEVICE, HAS_TRITON, mix_inputs, needs_triton

from mmpoolformer.ops import backend, pool_mix


@pytest.mark.parametrize(
    ('version', 'hip', 'supported'),
    [
        ('2.1.2+cu121', None, False),
        ('2.4.1', None, False),
        ('2.6.0', None, False),
        ('2.7.1', None, False),
        ('2.8.0', None, True),
        ('2.13.0+cu130', None, True),
        ('2.13.0+rocm7.0', '7.0.1', False),
    ],
)
def test_kernels_are_for_cuda_from_torch_2_8_on(version, hip, supported):
    assert backend.is_supported(version, hip) is supported


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_kernels_are_for_tensors_on_cuda_of_at_most_32_bits(dtype, monkeypatch):
    x = torch.zeros(1, dtype=dtype)
    monkeypatch.setattr(backend, 'SUPPORTED', True)
    assert not backend.may_run(x)
    monkeypatch.setattr(backend, 'on_cuda', lambda x: True)
    assert backend.may_run(x) is (dtype != torch.float64)
    monkeypatch.setattr(backend, 'SUPPORTED', False)
    assert not backend.may_run(x)


def test_what_triton_raises_at_import_is_said_once_and_pytorch_computes(monkeypatch, log):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == 'mmpoolformer.ops.triton':
                raise ValueError('infer_schema(func): unsupported type annotation')

    for name in [name for name in sys.modules if name.startswith('mmpoolformer.ops.triton')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr('mmpoolformer.ops.triton', raising=False)
    monkeypatch.setattr(sys, 'meta_path', [Broken(), *sys.meta_path])
    monkeypatch.setattr(backend, 'SUPPORTED', True)
    monkeypatch.setattr(backend, 'on_cuda', lambda x: True)
    monkeypatch.setattr(backend, '_is_loaded', False)
    monkeypatch.setattr(backend, '_kernels', None)
    for channels in (16, 24):
        inputs, *_ = mix_inputs((2, channels, 6, 5))
        _, stats = pool_mix(*inputs)
        assert stats is None
    ((level, message),) = log
    assert level == logging.getLevelName(logging.WARNING)
    assert 'infer_schema' in message and 'MMPOOLFORMER_TRITON=0' in message


# Who asks is the module that is being imported.
IMPORT_ALL = """
import sys
from importlib import import_module
from pkgutil import walk_packages
import torch

asked = set()

def watch(name):
    ask = getattr(torch.cuda, name)
    def watched(*args):
        frame = sys._getframe(1)
        while frame and frame.f_code.co_name != '<module>':
            frame = frame.f_back
        asked.add(frame and frame.f_globals['__name__'])
        return ask(*args)
    setattr(torch.cuda, name, watched)

for name in ('is_available', 'device_count', 'init', '_lazy_init', 'current_device'):
    watch(name)
import mmpoolformer
# Packages are imported by the walk, and again below, where an error ends it.
for module in walk_packages(mmpoolformer.__path__, 'mmpoolformer.', onerror=lambda name: None):
    if {has_triton} or not module.name.startswith('mmpoolformer.ops.triton'):
        if module.name != 'mmpoolformer.__main__':  # the command itself
            import_module(module.name)
own = [name for name in asked if name is None or name.startswith('mmpoolformer')]
assert not own and not torch.cuda.is_initialized(), own
"""


def test_no_import_asks_for_a_gpu():
    # Which can take a second, and keeps later child processes from using one.
    program = IMPORT_ALL.format(has_triton=bool(HAS_TRITON))
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_triton
def test_switch_of_all_kernels(emulated, monkeypatch, log):
    inputs = [t.to(DEVICE) for t in mix_inputs((1, 16, 3, 3))[0]]
    monkeypatch.setenv('MMPOOLFORMER_TRITON', '0')
    assert not backend.is_switched_on('pool_mix')
    assert pool_mix(*inputs)[1] is None and not log
    monkeypatch.setenv('MMPOOLFORMER_TRITON', '1')
    assert backend.is_switched_on('pool_mix')


def test_the_channel_mlp_is_opt_in_until_a_gpu_has_run_it_under_a_sanitizer(monkeypatch):
    assert not backend.is_switched_on('channel_mlp')
    monkeypatch.setenv('MMPOOLFORMER_TRITON_MLP', '1')
    assert backend.is_switched_on('channel_mlp')
    monkeypatch.setenv('MMPOOLFORMER_TRITON', '0')
    assert not backend.is_switched_on('channel_mlp')
