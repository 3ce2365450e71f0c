"""The fused path of the backbone, its deployed form and its compiled form."""

import copy

import pytest
import torch
from conftest import needs_whole_graphs
from torch import nn

from mmpoolformer import PoolFormer
from mmpoolformer.deploy import compile_for_inference, switch_to_deploy

TINY = dict(layers=(1, 2, 1, 1), embed_dims=(16, 24, 32, 48))
BN = dict(type='BN')
CHANNELS_LAST = dict(memory_format=torch.channels_last)


def build(token_mixing='fused', **options):
    model = PoolFormer(TINY, token_mixing=token_mixing, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # every part matters, unlike LayerScale at 1e-5
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if parameter.ndim == 1 else 0.1 * noise
    return model


@pytest.fixture
def image():
    return torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(1))


def assert_features_close(actual, expected, limit=1e-5):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        assert (a - e).norm() / e.norm() < limit


def features_and_gradients(model, image, autocast=False):
    torch.manual_seed(3)  # of stochastic depth
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        features = model(image)
    weights = [torch.randn(f.shape, generator=torch.Generator().manual_seed(2)) for f in features]
    sum((f.float() * w).sum() for f, w in zip(features, weights)).backward()
    return features, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    'options',
    [dict(), dict(pool_size=5), dict(drop_path_rate=0.5), dict(with_cp=True)],
    ids=str,
)
def test_features_and_gradients_are_those_of_the_plain_definition(options, image):
    plain, fused = (build(token_mixing=t, **options) for t in ('plain', 'fused'))
    expected, expected_gradients = features_and_gradients(plain, image)
    features, gradients = features_and_gradients(fused, image)
    assert_features_close(features, expected)
    for name, expected_gradient in expected_gradients.items():
        if name.endswith('norm1.bias'):  # it cancels; the plain definition shows rounding noise
            assert not gradients[name].any()
        else:
            error = (gradients[name] - expected_gradient).norm()
            assert error <= 1e-5 * expected_gradient.norm(), name


def test_autocast_is_as_near_to_float64_as_the_plain_definition(image):
    plain, fused = (build(token_mixing=t) for t in ('plain', 'fused'))
    exact, exact_gradients = features_and_gradients(
        copy.deepcopy(plain).double(), image.double()
    )  # fmt: skip
    expected, expected_gradients = features_and_gradients(plain, image, autocast=True)
    features, gradients = features_and_gradients(fused, image, autocast=True)

    def distance(actual, reference):
        pairs = zip(actual, reference)
        return sum(float((a.double() - r).square().sum() / r.square().sum()) for a, r in pairs)

    assert [f.dtype for f in features] == [e.dtype for e in expected]
    assert distance(features, exact) <= 1.1**2 * distance(expected, exact)
    names = [name for name in exact_gradients if not name.endswith('norm1.bias')]
    exact, expected, actual = (
        [g[name] for name in names] for g in (exact_gradients, expected_gradients, gradients)
    )
    assert distance(actual, exact) <= 1.1**2 * distance(expected, exact)


def is_fused(model, image, training=False):
    """Whether the blocks compute no norm by itself."""
    calls = []
    hook = model.network[0][0].norm1.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(training):
        model(image)
    hook.remove()
    return not calls


def test_path_can_be_asked_and_set(image):
    model = build()
    assert model.token_mixing == 'fused' and is_fused(model, image)
    expected = model(image)
    model.token_mixing = 'plain'
    assert model.token_mixing == 'plain' and not is_fused(model, image)
    assert_features_close(model(image), expected)


@pytest.mark.parametrize(
    ('shape', 'fused'),
    [((1, 3, 128, 128), False), ((4, 3, 128, 128), True), ((1, 3, 256, 320), True)],
)
def test_inference_on_small_images_takes_the_plain_path_which_is_faster_there(shape, fused):
    model = PoolFormer(TINY)
    assert is_fused(model, torch.zeros(shape)) is fused
    assert is_fused(model, torch.zeros(shape), training=True)


def test_small_channels_last_images_keep_their_digits(image):
    # PyTorch's GroupNorm in channels-last loses them where the mean is large.
    model = build('auto')
    assert not is_fused(model, image)
    assert is_fused(model, image.to(**CHANNELS_LAST))
    assert is_fused(model, image.to(**CHANNELS_LAST)[..., 5:, 5:])
    assert is_fused(model.to(**CHANNELS_LAST), image)


@pytest.mark.parametrize('norm_cfg', [BN, dict(type='GN', num_groups=2)], ids=str)
def test_other_norms_take_the_plain_path(norm_cfg, image):
    model = PoolFormer(TINY, norm_cfg=norm_cfg)
    assert not is_fused(model, image.repeat(5, 1, 1, 1))
    assert all(f.isfinite().all() for f in model(image))
    with pytest.raises(ValueError, match=r"num_groups=1.*token_mixing='plain'"):
        model.token_mixing = 'fused'


def test_unknown_path_is_refused():
    with pytest.raises(ValueError, match=r"token_mixing='fast'.*fused.*plain"):
        PoolFormer(TINY, token_mixing='fast')


@pytest.mark.parametrize('token_mixing', ['auto', 'fused', 'plain'])
def test_layout_of_features_is_the_callers(token_mixing, image):
    model = build(token_mixing=token_mixing)
    assert all(f.is_contiguous() for f in model(image))
    assert image.is_contiguous()
    assert all(f.is_contiguous(**CHANNELS_LAST) for f in model(image.to(**CHANNELS_LAST)))
    assert all(f.is_contiguous(**CHANNELS_LAST) for f in model.to(**CHANNELS_LAST)(image))


def test_blocks_run_in_channels_last(image):
    model, seen = build(), []
    model.network[2][0].mlp.fc1.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    model(image)
    assert seen[0].is_contiguous(**CHANNELS_LAST) and not seen[0].is_contiguous()


@pytest.mark.parametrize(
    'options',
    [dict(), dict(token_mixing='plain'), dict(token_mixing='auto', norm_cfg=BN)],
    ids=str,
)
def test_deployed_features_are_the_same(options, image):
    model = build(**options).eval()
    expected = model(image)
    keys = set(model.state_dict())
    model.switch_to_deploy()
    assert_features_close(model(image), expected)
    folded = {key.rsplit('.', 1)[-1] for key in keys - set(model.state_dict())}
    assert folded == {'layer_scale_2'} | (set() if 'norm_cfg' in options else {'weight', 'bias'})
    weights = copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_training_checkpoint_does_not_load_in_part_into_a_deployed_backbone():
    weights = build().state_dict()
    model = build().eval()
    model.switch_to_deploy()
    with pytest.raises(RuntimeError, match='layer_scale_2'):
        model.load_state_dict(weights)


def test_deploy_is_refused_in_training():
    with pytest.raises(RuntimeError, match='eval'):
        build().switch_to_deploy()


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
