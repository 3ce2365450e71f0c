"""For which sizes of images a recorded graph holds."""

import pytest
import torch
from helpers import require_export
from mmcv.ops import DeformConv2d
from mmcv.ops.merge_cells import SumCell
from torch import nn

from mmpoolformer.exporting.graphs import record, sides
from mmpoolformer.utils.errors import LaunchError

require_export()


class Wrapper(nn.Module):
    """A model that does something else with images of few columns."""

    def __init__(self):
        super().__init__()
        self.model = nn.MaxPool2d(2)

    def forward(self, image):
        x = self.model(image)
        return x * 2 if x.shape[-1] > 40 else x


class Clipped(nn.Module):
    """A model that makes a tensor of the sides, as mmdet's coders of boxes do."""

    kind = 'raw'

    def __init__(self):
        super().__init__()
        self.model = nn.Identity()

    def forward(self, image):
        return image.new_tensor(image.shape[-2:])


class OfOneHeight(Clipped):
    """A model that takes the height as a number."""

    def forward(self, image):
        return image.reshape(1, 3, int(image.shape[2]), -1) + image.new_zeros(1, 3, 331, 1)


class Deformed(nn.Module):
    """A model with an operator of mmcv's own."""

    kind = 'detector'

    def __init__(self):
        super().__init__()
        self.model = DeformConv2d(3, 3, 1)

    def forward(self, image):
        return self.model(image, image.new_zeros(1, 2, *image.shape[-2:]))


class Summed(Deformed):
    """A model that fails in a file of mmcv's operators, in Python."""

    def __init__(self):
        super().__init__()
        self.model = SumCell(3, 3, with_out_conv=False)

    def forward(self, image):
        return self.model(image, image[:, :2])


def recorded(wrapper=None):
    return record(wrapper or Wrapper(), torch.zeros(1, 3, 331, 461), dynamic=True)


def test_conditions_in_a_graph_bound_its_sizes():
    heights, widths = sides(recorded())
    assert heights == widths == [96, None]  # the first of the sides that are tried beyond 81


def test_a_tensor_of_the_sides_leaves_them_open():
    program = recorded(Clipped())
    assert sides(program) == ([32, None], [32, None])
    assert program.module()(torch.zeros(1, 3, 70, 90)).tolist() == [70, 90]


def test_a_graph_that_fixes_a_side_is_refused(monkeypatch):
    monkeypatch.setattr(
        'mmpoolformer.exporting.rewrites.new_tensor_of_sizes', lambda original: original
    )
    with pytest.raises(LaunchError, match=r'would hold only for height=331, width=461: .* --size'):
        sides(recorded(Clipped()))


def test_the_side_that_a_graph_fixes_is_named():
    with pytest.raises(LaunchError, match=r'would hold only for height=331: '):
        sides(recorded(OfOneHeight()))


def test_plain_pytorch_of_mmcvs_is_no_operator_of_its_own():
    with pytest.raises(LaunchError, match='as one graph: AssertionError'):
        recorded(Summed())


def test_an_operator_of_mmcvs_own_is_named():
    with pytest.raises(LaunchError, match=r"deform_conv is mmcv's own operator.* --raw"):
        recorded(Deformed())


def test_a_graph_whose_conditions_are_unknown_is_refused(monkeypatch):
    monkeypatch.setattr('torch.export._unlift._ok_to_generate_guards_fn', lambda: False)
    with pytest.raises(LaunchError, match='export with --size'):
        sides(recorded())


class Pyramid(nn.Module):
    """A neck that joins a level with the next one, which takes multiples of 4 only."""

    kind = 'detector'

    def __init__(self):
        super().__init__()
        self.model = nn.Upsample(scale_factor=2)

    def forward(self, image):
        fine, coarse = (nn.functional.avg_pool2d(image, stride) for stride in (2, 4))
        return torch.cat([fine, self.model(coarse)], 1)


def test_sides_that_levels_cannot_be_joined_at():
    with pytest.raises(LaunchError, match=r'pad_size_divisor=32 .*--size .*--raw exports'):
        record(Pyramid(), torch.zeros(1, 3, 31, 46), dynamic=True)
