"""Layers of the model against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from mmpoolformer.models.layers import Conv2d


@pytest.mark.parametrize('options', [dict(kernel_size=1), dict(kernel_size=3, stride=2, padding=1)])
@pytest.mark.parametrize('bias', [True, False])
def test_gradients_of_a_convolution_are_those_of_pytorch(options, bias):
    conv = Conv2d(3, 4, bias=bias, **options).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(conv, x)
    reference = nn.Conv2d(3, 4, bias=bias, **options).double()
    reference.load_state_dict(conv.state_dict())
    grad = torch.randn_like(conv(x))
    actual = torch.autograd.grad(conv(x), [x, *conv.parameters()], grad)
    expected = torch.autograd.grad(reference(x), [x, *reference.parameters()], grad)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e)


def test_a_convolution_has_second_derivatives():
    conv = Conv2d(2, 2, 1).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0 and conv.bias.grad.abs().sum() > 0
