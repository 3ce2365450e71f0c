"""Images that a runtime or a file does not take end in one message."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import require_export

from mmpoolformer.exporting.metadata import KEY, OUTPUTS, Metadata
from mmpoolformer.exporting.runtimes import check_constants, open_model
from mmpoolformer.exporting.samples import ExportedModel
from mmpoolformer.exporting.wrappers import IMAGE
from mmpoolformer.utils.errors import LaunchError

require_export()


@pytest.fixture
def row_fifty(tmp_path):
    """A file that says it takes all sizes, but whose graph wants 51 rows."""
    from onnx import TensorProto, helper, numpy_helper, save

    shape = [1, 3, 'height', 'width']
    graph = helper.make_graph(
        [helper.make_node('Gather', [IMAGE, 'row'], ['out'], axis=2)],
        'row_fifty',
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('out', TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(50), 'row')],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    meta = Metadata('backbone', [], [], 'float32', {'out': ''}, [32, None], [32, None], {})
    helper.set_model_props(model, {KEY: meta.text()})
    save(model, tmp_path / 'model.onnx')
    return open_model(tmp_path / 'model.onnx')


def test_a_size_at_which_an_operator_fails(row_fifty):
    assert row_fifty(np.ones((1, 3, 51, 40), np.float32))['out'].shape == (1, 3, 40)
    with pytest.raises(LaunchError, match=r'fails on an image of 48x40: .*--size makes a file'):
        row_fifty(np.ones((1, 3, 48, 40), np.float32))


@pytest.mark.parametrize(
    'shape, kind',
    [((3, 64, 64), 'float32'), ((2, 3, 64, 64), 'float32'), ((1, 64, 64, 3), 'float32'),
     ((1, 3, 64, 64), 'uint8')],
)  # fmt: skip
def test_what_is_no_image(shape, kind, row_fifty):
    with pytest.raises(LaunchError, match=rf'an image is float32.*; this is {kind} \['):
        row_fifty(np.ones(shape, kind))


@pytest.mark.parametrize(
    'data, is_sound',
    [
        ('element_type="f32" shape="2, 3" offset="0" size="24"', True),
        ('element_type="u4" shape="3" offset="8" size="2"', True),
        ('element_type="f32" shape="" offset="20" size="4"', True),
        ('element_type="f32" shape="4611686018427387908" offset="0" size="16"', False),
        ('element_type="f32" shape="-1, -6" offset="0" size="24"', False),
        ('element_type="f32" shape="2, 3" offset="8" size="24"', False),
        ('element_type="f32" shape="2, 3" offset="-8" size="24"', False),
        ('element_type="f32" shape="2, 3"', False),
        ('element_type="f32" shape="2, 3" offset="0" size="24" value="ab"', False),
        ('element_type="f8e8m0" shape="2305843009213693952" offset="0" size="0"', False),
        ('element_type="f32" shape="2, 3" offset="0" size="24" xmlns:a="b" a:c="d"', False),
    ],
)
@pytest.mark.parametrize('kind', ['Const', 'Constant', 'CONSTANT'])
def test_constants_are_no_larger_than_their_file(kind, data, is_sound, tmp_path):
    layer = f'<layer id="0" name="a" type="{kind}"><data {data}/></layer>'
    (tmp_path / 'a.xml').write_text(f'<net><layers>{layer}</layers></net>')
    (tmp_path / 'a.bin').write_bytes(bytes(24))
    if is_sound:
        check_constants(tmp_path / 'a.xml')
        return
    with pytest.raises(ValueError, match=r'constant|namespace'):
        check_constants(tmp_path / 'a.xml')
    with pytest.raises(LaunchError, match='openvino cannot load'):
        open_model(tmp_path / 'a.xml')


def test_a_file_that_is_nested_deeply_is_refused(tmp_path):
    (tmp_path / 'a.xml').write_text('<net>' + 20_000 * '<a>' + 20_000 * '</a>' + '</net>')
    (tmp_path / 'a.bin').write_bytes(b'')
    with pytest.raises(LaunchError, match='more than 100 elements deep'):
        open_model(tmp_path / 'a.xml')


BOXES = dict(
    boxes=np.zeros((2, 4), np.float32), scores=np.zeros(2, np.float32), labels=np.array([0, 1])
)


@pytest.mark.parametrize(
    'name, value',
    [
        ('labels', np.array([0, 99])),
        ('labels', np.array([-1, 0])),
        ('labels', np.array([0.0, 1.0])),
        ('labels', np.array([0])),
        ('boxes', np.zeros((2, 3))),
        ('boxes', np.array(1.0)),
        ('scores', np.zeros((2, 1))),
        ('masks', np.zeros((1, 28, 28))),
        ('masks', None),
        ('boxes', np.full((2, 4), np.nan)),
        ('boxes', np.full((2, 4), np.inf)),
        ('scores', np.array([np.nan, 1])),
    ],
)
def test_outputs_that_are_no_boxes(name, value):
    outputs = dict.fromkeys([*OUTPUTS['detector'], *(['masks'] if name == 'masks' else [])], '')
    meta = Metadata('detector', ['a', 'b'], [], 'uint8', outputs, [], [], {})
    meta.check_outputs(dict(BOXES, masks=np.zeros((2, 28, 28))), 'model.onnx')
    found = {key: v for key, v in dict(BOXES, **{name: value}).items() if v is not None}
    with pytest.raises(LaunchError, match=f'model.onnx puts out {name} that are none'):
        meta.check_outputs(found, 'model.onnx')


@pytest.mark.parametrize(
    'shape, classes',
    [
        ((3,), 2), ((1, 3, 8, 8), 2), ((3, 2, 8, 8), 2), ((1, 2, 0, 8), 2), ((1, 1, 8, 8), 3),
        ((1, 2, 8, 8), 2), ((1, 1, 8, 8), 2),
    ],
)  # fmt: skip
def test_logits_that_are_none(shape, classes):
    outputs = dict.fromkeys(OUTPUTS['segmentor'], '')
    meta = Metadata('segmentor', list('abc'[:classes]), [], 'uint8', outputs, [], [], {})
    found = dict(labels=np.zeros((1, 8, 8), int), logits=np.zeros(shape))
    if (shape, classes) in (((1, 2, 8, 8), 2), ((1, 1, 8, 8), 2)):
        meta.check_outputs(found, 'model.onnx')
        found['logits'] = found['logits'] + np.nan
    with pytest.raises(LaunchError, match='logits that are none'):
        meta.check_outputs(found, 'model.onnx')


@pytest.mark.parametrize('value', [-0.5, 256.0, float('nan')])
def test_pixels_that_are_no_bytes(value):
    meta = Metadata('detector', [], [], 'uint8', dict.fromkeys(OUTPUTS['detector'], ''), [], [], {})
    model = ExportedModel.of(SimpleNamespace(meta=meta, path='model.onnx'))
    with pytest.raises(LaunchError, match='leave out Normalize and to_float32'):
        model.predict_one(torch.full((3, 64, 64), value), None)
