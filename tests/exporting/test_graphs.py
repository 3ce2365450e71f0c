"""For which sizes of images a recorded graph holds."""

import pytest
import torch
from helpers import require_export
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


def recorded():
    return record(Wrapper(), torch.zeros(1, 3, 331, 461), dynamic=True)


def test_conditions_in_a_graph_bound_its_sizes():
    heights, widths = sides(recorded())
    assert heights == widths == [96, None]  # the first of the sides that are tried beyond 81


def test_a_graph_whose_conditions_are_unknown_is_refused(monkeypatch):
    monkeypatch.setattr('torch.export._unlift._ok_to_generate_guards_fn', lambda: False)
    with pytest.raises(LaunchError, match='export with --size'):
        sides(recorded())
