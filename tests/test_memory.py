"""The formula for the memory of training."""

import pytest
import torch
from conftest import load_tool

REPORT = load_tool('memory_report')


@pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'),
    reason="torch 2.1's profiler does not count the same from run to run",
)
@pytest.mark.parametrize('mode', REPORT['MODES'])
def test_formula_is_what_the_allocator_counts(mode):
    size = (256, 192)
    predicted = REPORT['predicted'](mode, 's12', *size) + REPORT['weight_copies'](mode, 's12')
    assert predicted == pytest.approx(REPORT['measured'](mode, 's12', *size), rel=0.02)
