"""Without a GPU, Triton's interpreter runs the kernels on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from op_inputs import DEVICE

from mmpoolformer.ops import backend, first_use

H100 = SimpleNamespace(major=9, shared_memory_per_block_optin=227 * 1024)


@pytest.fixture(scope='module')
def triton_ops():
    assert backend.load()
    return backend.kernels()


@pytest.fixture
def emulated(triton_ops, monkeypatch):
    """Let tensors on the CPU pass for those of a GPU, whose kernels Triton's interpreter runs."""
    if DEVICE == 'cuda':
        return
    monkeypatch.setattr(backend, 'on_cuda', lambda x: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: H100)
    correct_bfloat16(monkeypatch)


@pytest.fixture
def interpreted(emulated, monkeypatch):
    """Let the operations run the Triton kernels, without a trial and whatever comes of it."""

    def agrees(name, device, types, *sizes):
        return first_use.TRIALS[name].covers(device, *sizes)

    agrees._dynamo_marked_constant = True
    monkeypatch.setattr(first_use, 'agrees', agrees)


def correct_bfloat16(monkeypatch):
    """The interpreter multiplies the bits of bfloat16, and cuts digits off instead of rounding."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def rounding_cast(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(source.data).bfloat16().view(torch.uint16)
            return TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, source, dtype)

    def widening_dot(self, a, b, *args):
        a, b = (
            cast(self, operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
            for operand in (a, b)
        )
        return dot(self, a, b, *args)

    monkeypatch.setattr(InterpreterBuilder, 'cast_impl', rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, 'create_dot', widening_dot)


@pytest.fixture
def form(request):
    if request.param == 'triton':
        request.getfixturevalue('interpreted')
    else:  # on a GPU too
        request.getfixturevalue('monkeypatch').setenv(backend.SWITCH, '0')
    return request.param
