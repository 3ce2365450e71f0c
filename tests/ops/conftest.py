"""Without a GPU, Triton's interpreter runs the kernels on the CPU."""

import json
import sys

import pytest
from gpu import interpreter
from op_inputs import DEVICE, PASS_BY_PASS

from mmpoolformer.ops import backend, first_use, measured


@pytest.fixture(autouse=True)
def write_table(tmp_path, monkeypatch):
    """Put a table in the place of what was measured on GPUs; an empty one to begin with."""
    monkeypatch.setattr(measured, 'TABLE', tmp_path / 'measured.json')

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        measured.TABLE.write_text(text)
        measured.forget()

    write(dict(devices={}))
    yield write
    measured.forget()


@pytest.fixture(scope='module')
def triton_ops():
    assert backend.load()
    return backend.kernels()


@pytest.fixture
def emulated(triton_ops, monkeypatch):
    """Let tensors on the CPU pass for those of a GPU, whose kernels Triton's interpreter runs."""
    if DEVICE == 'cuda':
        return
    interpreter.stand_in(monkeypatch.setattr)


@pytest.fixture
def interpreted(emulated, monkeypatch):
    """Let the operations run the Triton kernels, without a trial and whatever comes of it."""

    def agrees(name, device, types, *sizes):
        return first_use.TRIALS[name].covers(device, *sizes)

    agrees._dynamo_marked_constant = True
    monkeypatch.setattr(first_use, 'agrees', agrees)


@pytest.fixture
def form(request, monkeypatch):
    if request.param == 'triton':
        request.getfixturevalue('interpreted')
    else:  # on a GPU too
        monkeypatch.setenv(backend.SWITCH, '0')
    if request.param == PASS_BY_PASS:
        monkeypatch.setattr(sys.modules['mmpoolformer.ops.group_norm'], 'HAS_EXACT_NATIVE', False)
    return request.param
