"""Every torch takes a path that works there, on a CUDA device that is emulated.

Each in a process of its own with the version, and what is missing in it, in the place of this
torch's. The real thing is tested for the torch of both stacks.
"""

import subprocess
import sys

import pytest
import torch
from helpers import TINY

from mmpoolformer.ops import backend

# As a user imports and trains it. Tensors on the CPU pass for those of a GPU.
PROGRAM = """
import os
os.environ.update(TRITON_INTERPRET='1', MMPOOLFORMER_TRITON_MLP='1')
import torch
import torch.library

version, hip, breaks = {version!r}, {hip!r}, {breaks!r}
torch.__version__, torch.version.hip = version, hip
torch.cuda.is_available = lambda: True

if breaks == 'custom ops':  # torch 2.4, whose schemas are not read off annotations in strings
    custom_op = getattr(torch.library, 'custom_op', None)
    def refuse(name, *args, **kwargs):
        if name.startswith('mmpoolformer'):
            raise ValueError('infer_schema(func): Parameter x has unsupported type Tensor')
        return custom_op(name, *args, **kwargs)
    torch.library.custom_op = refuse
properties = type('Properties', (), dict(major=9))
if breaks != 'properties':  # torch 2.5 and 2.6, ROCm
    properties.shared_memory_per_block_optin = 227 * 1024
torch.cuda.get_device_properties = lambda device: properties
mm = torch.mm
if breaks in ('custom ops', 'properties', 'mm'):  # until torch 2.7
    torch.mm = lambda a, b: mm(a, b)
else:
    torch.mm = lambda a, b, out_dtype: mm(a.to(out_dtype), b.to(out_dtype))

import mmpoolformer
from mmpoolformer.ops import backend, first_use
backend.on_cuda = lambda x: True
first_use.HEIGHT, first_use.WIDTH = 3, 5

model = mmpoolformer.PoolFormer({arch!r}).train()
for autocast in (False, True):
    with torch.autocast('cpu', {half}, enabled=autocast):
        features = model(torch.randn(1, 3, 32, 32))
    sum(f.float().square().sum() for f in features).backward()
assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
print('path:', 'triton' if any(first_use._verdicts.values()) else 'pytorch')
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ('version', 'hip', 'breaks', 'path'),
    [
        (torch.__version__, None, None, 'triton' if backend.SUPPORTED else 'pytorch'),
        ('2.1.2', None, 'custom ops', 'pytorch'),
        ('2.4.1', None, 'custom ops', 'pytorch'),
        ('2.6.0', None, 'properties', 'pytorch'),
        ('2.7.1', None, 'mm', 'pytorch'),
        ('2.8.0', None, None, 'triton'),
        ('2.13.0', '7.0.1', 'properties', 'pytorch'),
        # Whatever comes after this one.
        ('2.99.0', None, 'custom ops', 'pytorch'),
    ],
)
def test_training_on_cuda(version, hip, breaks, path):
    if backend.is_supported(version, hip) and not backend.SUPPORTED:
        pytest.skip('needs Triton and torch 2.8 or later')
    # The interpreter has float16, but no sound bfloat16; torch 2.1 has the other one on CPUs.
    half = torch.float16 if path == 'triton' else torch.bfloat16
    program = PROGRAM.format(version=version, hip=hip, breaks=breaks, arch=TINY, half=half)
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f'path: {path}' in run.stdout
    warned = 'MMPOOLFORMER_TRITON=0' in run.stdout + run.stderr
    assert warned is (version == '2.99.0')
