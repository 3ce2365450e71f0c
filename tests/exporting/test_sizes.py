"""What mmdet makes of the sizes of maps holds in a graph for images of all sizes."""

import pytest
import torch
from helpers import random_weights, require_export
from mmdet.models.layers import DeformableDetrTransformerEncoder
from torch import nn
from torch.nn.functional import avg_pool2d

from mmpoolformer.exporting.formats import to_onnx
from mmpoolformer.exporting.graphs import record, sides
from mmpoolformer.exporting.rewrites import for_graphs
from mmpoolformer.exporting.sizes import Sizes
from mmpoolformer.exporting.wrappers import IMAGE

require_export()

DIMS, STRIDES = 16, (2, 4)


class Encoder(nn.Module):
    """The encoder of Deformable DETR and DINO, with what goes into it."""

    kind = 'detector'

    def __init__(self):
        super().__init__()
        attention = dict(embed_dims=DIMS, num_heads=2, num_levels=2, batch_first=True)
        layer = dict(
            self_attn_cfg=attention, ffn_cfg=dict(embed_dims=DIMS, feedforward_channels=DIMS)
        )
        self.model = DeformableDetrTransformerEncoder(num_layers=1, layer_cfg=layer)
        self.projection = nn.Conv2d(3, DIMS, 1)

    def forward(self, image):
        maps = [self.projection(avg_pool2d(image, stride)) for stride in STRIDES]
        shapes = torch.cat([torch._shape_as_tensor(x)[2:].to(x.device) for x in maps]).view(-1, 2)
        starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
        query = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        return self.model(
            query=query,
            query_pos=torch.zeros_like(query),
            key_padding_mask=None,
            spatial_shapes=shapes,
            level_start_index=starts,
            valid_ratios=query.new_ones(1, 2, 2),
        )


@pytest.fixture(scope='module')
def encoder():
    return random_weights(Encoder()).eval()


@pytest.fixture(scope='module')
def program(encoder):
    return record(encoder, torch.zeros(1, 3, 70, 90), dynamic=True)


def test_a_graph_of_deformable_attention_takes_all_sizes(program):
    assert sides(program) == ([32, None], [32, None])


@pytest.mark.parametrize('size', [(70, 90), (64, 32), (33, 129)])
def test_deformable_attention_in_a_graph(size, encoder, program):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(image), encoder(image), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def session(encoder):
    import onnxruntime

    program = record(encoder, torch.zeros(1, 3, 70, 90), dynamic=True)
    return onnxruntime.InferenceSession(to_onnx(program, ['out']).SerializeToString())


@pytest.mark.parametrize('size', [(70, 90), (64, 32), (33, 129)])
def test_deformable_attention_in_onnx_runtime(size, encoder, session):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(None, {IMAGE: image.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), encoder(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('count', [2, 7])
def test_steps_of_an_open_number(count):
    class Steps(nn.Module):
        def forward(self, x):
            side = x.shape[0] - 1
            return torch.linspace(0.5, side - 0.5, side)

    with for_graphs():
        open_side = {0: torch.export.Dim.AUTO}
        program = torch.export.export(Steps(), (torch.zeros(5),), dynamic_shapes={'x': open_side})
    found = program.module()(torch.zeros(count + 1))
    torch.testing.assert_close(found, torch.linspace(0.5, count - 0.5, count))


class Pooling(nn.Module):
    """The pyramid pooling of PSPNet and UPerNet."""

    kind = 'segmentor'

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleList(nn.AdaptiveAvgPool2d(count) for count in (1, 2, 3, 6, (3, 5)))

    def forward(self, image):
        return tuple(pool(image) for pool in self.model)


@pytest.fixture(scope='module')
def pooling_session():
    import onnxruntime

    program = record(Pooling(), torch.zeros(1, 3, 70, 90), dynamic=True)
    file = to_onnx(program, [f'out{i}' for i in range(5)])
    return onnxruntime.InferenceSession(file.SerializeToString())


@pytest.mark.parametrize('size', [(70, 90), (3, 4), (12, 18), (33, 129)])
def test_adaptive_pooling_in_onnx_runtime(size, pooling_session):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    found = pooling_session.run(None, {IMAGE: image.numpy()})
    for ours, theirs in zip(found, Pooling()(image), strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), theirs, rtol=1e-5, atol=1e-6)


def test_sizes_become_a_tensor_where_they_meet_one():
    x = torch.zeros(1, 3, 5, 7)
    sizes = Sizes.of_map(x)[2:]
    assert torch.equal(sizes.tensor(), torch._shape_as_tensor(x)[2:])
    assert torch.equal(torch.tensor([10.0, 14.0]) / sizes, torch.tensor([2.0, 2.0]))
    assert torch.equal(sizes.unsqueeze(0).flip([0, 1]).tensor(), torch.tensor([[7, 5]]))
    assert torch.cat([sizes, sizes]).view(-1, 2).prod(1).tolist() == [35, 35]


def test_outside_of_a_graph_pytorch_is_as_it_was():
    before = torch._shape_as_tensor, torch.linspace, torch.Tensor.new_tensor
    with for_graphs():
        assert isinstance(torch._shape_as_tensor(torch.zeros(2)), Sizes)
    assert (torch._shape_as_tensor, torch.linspace, torch.Tensor.new_tensor) == before
