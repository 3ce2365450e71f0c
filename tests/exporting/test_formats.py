"""How graphs are written for a runtime."""

import numpy as np
import pytest
import torch
from helpers import random_weights, require_export
from torch import nn

from mmpoolformer.exporting.formats import to_onnx, to_openvino
from mmpoolformer.exporting.graphs import record
from mmpoolformer.models.norms import OneGroupNorm
from mmpoolformer.utils.errors import LaunchError

require_export()


class Wrapper(nn.Module):
    """A norm between two convolutions, as in a block."""

    def __init__(self, norm):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 1))

    def forward(self, image):
        return self.model(image)


class Reshaped(nn.Module):
    """A norm over the same numbers, of which another map is made."""

    def forward(self, x):
        return nn.functional.group_norm(x, 1).reshape(1, 8, -1, 2)


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize(
    'norm, dimensions',
    [
        (OneGroupNorm(8), [4, 4]),
        (nn.GroupNorm(1, 8), [4, 4]),
        (nn.GroupNorm(2, 8), [3, 3]),
        (Reshaped(), [3, 4]),  # of a fixed size OpenVINO makes one of both reshapes
    ],
    ids=['ours', 'one group', 'two groups', 'reshaped'],
)
def test_openvino_normalises_maps_without_flattening_them(norm, dimensions, dynamic):
    import openvino

    wrapper = random_weights(Wrapper(norm)).eval()
    image = torch.randn(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    model = to_openvino(record(wrapper, image, dynamic), ['out'])
    norms = [op for op in model.get_ops() if op.get_type_name() == 'MVN']
    ranks = [op.get_output_partial_shape(0).rank.get_length() for op in norms]
    assert ranks == [dimensions[dynamic]]
    found = openvino.Core().compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(
        image.numpy()
    )[0]
    np.testing.assert_allclose(found, wrapper(image).detach(), atol=1e-5)


class Bessel(nn.Module):
    """A model that computes what ONNX has no operator for."""

    def forward(self, image):
        return torch.special.bessel_j0(image)


def test_an_operator_that_onnx_does_not_have_is_named():
    program = record(Wrapper(Bessel()), torch.zeros(1, 3, 20, 28), dynamic=False)
    with pytest.raises(LaunchError, match=r'ONNX has no operator .*bessel_j0.* --raw exports'):
        to_onnx(program, ['out'])
