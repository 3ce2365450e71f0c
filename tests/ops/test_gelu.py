"""The GELU of the kernels against that of erf."""

import torch
import torch.nn.functional as F
from op_inputs import DEVICE, HAS_TRITON, needs_triton

pytestmark = needs_triton
SIZE = 2**15

if HAS_TRITON:
    import triton
    import triton.language as tl

    from mmpoolformer.ops.triton.channel_mlp import gelu_tail

    @triton.jit
    def tail_kernel(h_ptr, tail_ptr, SIZE: tl.constexpr):
        place = tl.arange(0, SIZE)
        tl.store(tail_ptr + place, gelu_tail(tl.load(h_ptr + place)))


def test_gelu_is_within_1e_6_of_that_of_erf():
    extremes = torch.tensor([-1e30, -100, -40, -0.0, 0, 40, 100, 1e30])
    h = torch.cat((torch.linspace(-15, 15, SIZE - len(extremes)), extremes)).to(DEVICE)
    tail = torch.empty_like(h)
    tail_kernel[(1,)](h, tail, SIZE)
    exact = 0.5 * (1 + torch.erf(h.double() * 0.5**0.5))
    assert (torch.where(h < 0, tail, 1 - tail).double() - exact).abs().max() < 1e-6
    gelu = h.clamp_min(0) - h.abs() * tail
    assert ((gelu - F.gelu(h.double())) / h.double().abs().clamp_min(1)).abs().max() < 1e-6
