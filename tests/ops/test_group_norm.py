"""The norm of one group against the plain definition."""

import pytest
import torch
import torch.nn.functional as F
from op_inputs import LAYOUTS, mix_inputs, relative_error, with_gradients

from mmpoolformer.ops import group_norm


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_keeps_the_digits_of_large_means(layout, mean):
    (x, weight, bias, _), _, _ = mix_inputs((2, 16, 24, 24), mean)
    expected = F.group_norm(x.double(), 1, weight.double(), bias.double())
    expected = LAYOUTS[layout](expected)
    assert relative_error(group_norm(LAYOUTS[layout](x), weight, bias), expected) < 1e-6


@pytest.mark.parametrize('mean', [0.0, 1e4])
def test_group_norm_gradients(mean):
    (x, weight, bias, _), _, grad = mix_inputs((2, 16, 9, 7), mean)
    inputs = [x, weight, bias]
    expected = with_gradients(lambda x, w, b: F.group_norm(x, 1, w, b), inputs, grad)
    actual = with_gradients(group_norm, inputs, grad, torch.float32)
    for name, a, e in zip(('y', 'x', 'weight', 'bias'), actual, expected):
        assert relative_error(a, e) < 1e-5, name
