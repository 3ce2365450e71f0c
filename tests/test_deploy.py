"""Deployed and compiled backbones compute what the plain ones do."""

import copy
import pickle

import pytest
import torch
from fused_and_plain import assert_features_close, build, features_and_gradients
from helpers import TINY, needs_whole_graphs, tiny_metaformer
from torch import nn

from mmpoolformer.deploy import compile_for_inference, switch_to_deploy


@needs_whole_graphs
def test_compile_for_inference_takes_changing_sizes_of_channel_norms():
    model = tiny_metaformer('caformer_s18', out_indices=(0,)).eval()
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_for_inference(model)
    with torch.no_grad():
        for size in ((64, 64), (96, 64), (64, 160)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(model(image), reference(image), rtol=1e-4, atol=1e-5)


def test_compile_for_inference_takes_the_modes_of_torch_compile(monkeypatch):
    model, modes = build(out_indices=(0,)).eval(), []
    compile_for_inference(copy.deepcopy(model), mode='reduce-overhead')
    with pytest.raises(RuntimeError, match='reduce-overhead'):
        compile_for_inference(copy.deepcopy(model), mode='graphs')
    monkeypatch.setattr(torch, 'compile', lambda f, mode, dynamic: modes.append(mode) or f)
    compile_for_inference(copy.deepcopy(model))
    compile_for_inference(model, mode='reduce-overhead')
    assert modes == [None, 'reduce-overhead']


def test_switch_to_deploy_of_a_whole_model(image):
    model = nn.Sequential(build())
    expected = model.eval()(image)
    assert switch_to_deploy(model.train()) == 1 + sum(TINY['layers'])
    assert_features_close(model(image), expected)
    assert switch_to_deploy(nn.Sequential(nn.ReLU())) == 0


@needs_whole_graphs
@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
@pytest.mark.parametrize('options', [dict(), dict(drop_path_rate=0.5, with_cp=True)], ids=str)
def test_compiles_without_a_graph_break(training, options, image):
    model = build(out_indices=(0, 1), **options).train(training)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    with torch.set_grad_enabled(training):
        for height, width in ((75, 101), (64, 96)):  # the second one with dynamic shapes
            features = compiled(image[..., :height, :width].contiguous())
            if training:
                sum(f.sum() for f in features).backward()
    assert model.network[0][0].norm1.weight.grad is not None or not training


@needs_whole_graphs
def test_small_and_large_images_share_a_compiled_graph(image):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = build('auto', out_indices=(0,)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in (64, 96, 256):
            compiled(torch.zeros(2, 3, size, size))
    assert len(graphs) == 1


@needs_whole_graphs
@pytest.mark.parametrize('dynamic', [True, False], ids=['dynamic', 'static'])
def test_inductor_trains_with_the_same_numbers(dynamic, image):
    # One stage of one block: Inductor takes its time.
    model = build(out_indices=(0,))
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled.forward = torch.compile(compiled.forward, fullgraph=True, dynamic=dynamic)
    expected, expected_gradients = features_and_gradients(model, image)
    features, gradients = features_and_gradients(compiled, image)
    assert_features_close(features, expected)
    for name, expected_gradient in expected_gradients.items():
        error = (gradients[name] - expected_gradient).norm()
        assert error <= 1e-5 * expected_gradient.norm(), name


def test_compile_for_inference_takes_changing_sizes(image):
    model = build(out_indices=(0,)).eval()
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    switch_to_deploy(model)
    compile_for_inference(model)
    with torch.no_grad():
        for part in (image, image[:1, :, :64, :64], image[:, :, :33]):
            assert_features_close(model(part), reference(part))


@needs_whole_graphs
def test_exports(image):
    model = build().eval()
    program = torch.export.export(model, (image,))
    assert_features_close(program.module()(image), model(image))


@pytest.mark.parametrize('copied', [copy.deepcopy, pickle.dumps])
def test_what_is_compiled_is_not_copied(copied, monkeypatch):
    """A copy would compute with the weights of the original."""
    monkeypatch.setattr(torch, 'compile', lambda forward, **_: forward)
    model = build().eval()
    compile_for_inference(model)
    with pytest.raises(RuntimeError, match='copy it first'):
        copied(model)
