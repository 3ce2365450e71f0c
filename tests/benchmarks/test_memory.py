"""The formula for the memory of training."""

from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT, load_tool

from mmpoolformer.ops import backend

REPORT = load_tool('memory')


@pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'),
    reason="torch 2.1's profiler does not count the same from run to run",
)
@pytest.mark.parametrize('mode', REPORT['MODES'])
def test_formula_is_what_the_allocator_counts(mode):
    size = (256, 192)
    predicted = REPORT['predicted'](mode, 's12', *size) + REPORT['weight_copies'](mode, 's12')
    assert predicted == pytest.approx(REPORT['measured'](mode, 's12', *size), rel=0.02)


needs_triton = pytest.mark.skipif(
    not (find_spec('triton') and backend.SUPPORTED), reason='needs Triton and torch 2.8 or later'
)


@needs_triton
@pytest.mark.parametrize(
    ('dtype', 'amp', 'bytes_kept'), [(torch.float32, True, 4 + 4), (torch.bfloat16, False, 2 + 2)]
)
def test_kernels_keep_the_input_and_the_mixed_map(dtype, amp, bytes_kept):
    assert backend.load()
    assert REPORT['kept_by_kernels'](dtype, amp) == bytes_kept


@needs_triton
def test_page_has_what_is_counted(tmp_path):
    REPORT['write_page'](tmp_path / 'formula.md', REPORT['formula']())
    page = (ROOT / 'docs' / 'reports' / 'memory.md').read_text()
    assert (tmp_path / 'formula.md').read_text() in page
