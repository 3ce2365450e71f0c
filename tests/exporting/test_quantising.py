"""Which parts of a model stay in float32."""

import numpy as np
import pytest
from helpers import require_export

from mmpoolformer.exporting.quantising import OTHER, parts_of, quantise
from mmpoolformer.utils.errors import LaunchError

require_export()

LAYERS = {
    'model.backbone.network.0.0.mlp.fc1.weight': 'backbone.network.0',
    'model.backbone.network.2.0.mlp.fc1.weight': 'backbone.network.2',
    'model.decode_head.conv_seg.weight': 'decode_head',
    'const_7': OTHER,
}


@pytest.fixture(scope='module')
def model():
    """Convolutions one behind the other."""
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    image = x = ops.parameter([1, 4, 8, 8], np.float32)
    for name in LAYERS:
        weight = ops.constant(rng.normal(size=(4, 4, 3, 3)).astype(np.float32))
        weight.set_friendly_name(name)
        x = ops.relu(ops.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1]))
    return openvino.Model([x], [image])


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, 4, 8, 8)).astype(np.float32) for _ in range(16)]


def in_float(model):
    """The parts whose weights are no integers."""
    found = []
    for part, layers in parts_of(model).items():
        by_name = {op.get_friendly_name(): op for op in model.get_ops()}
        weight = by_name[layers[0]].input_value(1).get_node()
        if weight.get_type_name() == 'Constant':
            found.append(part)
    return found


def test_parts_are_named_by_their_weights(model):
    assert list(parts_of(model)) == list(LAYERS.values())


def test_all_is_quantised_where_nothing_is_lost(model, images):
    made = quantise(model, images, lambda _: 0.7, 0.69)
    assert made.in_float == [] == in_float(made.model) and made.metric == 0.7


def test_the_parts_that_bring_most_back_stay_in_float(model, images):
    worth = {'decode_head': 0.2, 'backbone.network.2': 0.1}

    def measure(made):
        return 0.4 + sum(worth.get(part, 0.0) for part in in_float(made))

    one = quantise(model, images, measure, 0.6)
    assert one.in_float == ['decode_head'] == in_float(one.model)
    two = quantise(model, images, measure, 0.7)
    assert two.in_float == ['decode_head', 'backbone.network.2']
    with pytest.raises(LaunchError, match=r'int8 has 0.7000 where 0.9000 is asked for'):
        quantise(model, images, measure, 0.9)


def test_too_few_images(model, images):
    with pytest.raises(LaunchError, match='15 images are too few'):
        quantise(model, images[1:], lambda _: 1.0, 0.0)
