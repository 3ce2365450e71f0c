"""The fused path of the backbone and its deployed form."""

import copy
import warnings
from unittest import mock

import pytest
import torch
from fused_and_plain import BN, CHANNELS_LAST, assert_features_close, build, features_and_gradients
from helpers import TINY
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mmpoolformer import PoolFormer
from mmpoolformer.deploy import switch_to_deploy
from mmpoolformer.models import block
from mmpoolformer.models.layers import Conv2d, Mlp

MLP_PARTS = (Mlp, nn.Conv2d, nn.GELU, nn.Dropout)


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


def test_bfloat16_with_stochastic_depth_trains_alike(image):
    plain, fused = (
        build(token_mixing=t, drop_path_rate=0.5).bfloat16() for t in ('plain', 'fused')
    )
    expected, _ = features_and_gradients(plain, image.bfloat16())
    features, gradients = features_and_gradients(fused, image.bfloat16())
    assert [f.dtype for f in features] == [torch.bfloat16] * len(expected)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for feature, other in zip(features, expected):
        torch.testing.assert_close(feature, other, rtol=0.1, atol=0.1)


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
    """Whether the blocks compute with the package's operation."""
    operation = mock.Mock(wraps=block.pool_mix)
    with mock.patch.object(block, 'pool_mix', operation), torch.set_grad_enabled(training):
        model(image)
    return operation.called


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


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('fold', ['model', 'weights'])
def test_folded_and_other_weights_do_not_mix_without_strict_either(fold, load):
    folded, other = build().eval(), build()
    folded.switch_to_deploy()
    model, weights = (folded, other) if fold == 'model' else (other, folded)
    with pytest.raises(RuntimeError, match=r'network.0.0.*switch_to_deploy'):
        load(model, weights.state_dict(), strict=False)


def weight_norm(conv):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # deprecated, and still met
        nn.utils.weight_norm(conv)


@pytest.mark.parametrize('part', ['mlp.fc1', 'mlp.fc2', 'norm2'])
@pytest.mark.parametrize(
    'change', [nn.utils.parametrizations.weight_norm, weight_norm], ids=['parametrised', 'hooked']
)
def test_deploy_is_refused_where_weights_are_computed(change, part, image):
    model = build().eval()
    change(model.blocks[-1].get_submodule(part))
    expected = model(image)
    with pytest.raises(RuntimeError, match=f'{part}.*remove_parametrizations'):
        model.switch_to_deploy()
    assert not any(block.deployed for block in model.blocks)
    assert_features_close(model(image), expected)


@pytest.mark.parametrize('part', ['mlp', 'mlp.fc1', 'mlp.act', 'mlp.fc2', 'mlp.drop', None])
def test_what_a_hook_keeps_of_the_mlp_is_not_written_over(part, image):
    seen = {}
    for token_mixing in ('plain', 'fused'):
        model, kept = build(token_mixing).eval(), []

        def keep(module, _, out, kept=kept):
            if isinstance(module, MLP_PARTS):
                kept.append(out)

        register = register_module_forward_hook
        if part is not None:
            register = model.blocks[1].get_submodule(part).register_forward_hook
        hook = register(keep)
        try:
            with torch.no_grad():
                model(image)
        finally:
            hook.remove()
        seen[token_mixing] = kept
    assert len(seen['plain']) > 0
    for actual, expected in zip(seen['fused'], seen['plain'], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'part',
    [
        *('blocks.1.norm1', 'blocks.1.token_mixer', 'blocks.1.token_mixer.pool'),
        *('blocks.1.norm2', 'blocks.1.drop_path', 'norm2'),
    ],
)
@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward'])
def test_what_has_a_hook_is_called(kind, part, image):
    model = build('fused')
    expected = model(image)
    first, *names = part.split('.')
    module = model.blocks[int(names.pop(0))] if first == 'blocks' else model.get_submodule(first)
    module, calls = module.get_submodule('.'.join(names)), []
    getattr(module, f'register_{kind}_hook')(lambda *_: calls.append(1))
    features = model(image)
    sum(feature.sum() for feature in features).backward()
    assert calls
    assert_features_close(features, expected)


def replace_pool(block):
    block.token_mixer.pool = nn.MaxPool2d(3, 1, 1)


def replace_drop_path(block):
    block.drop_path = nn.Identity()


def replace_mlp(block):
    block.mlp = nn.Sequential(block.mlp.fc1, block.mlp.act, block.mlp.fc2)


def count(module):
    forward = module.forward
    module.forward = lambda *args: 1.5 * forward(*args)


def own_pool_forward(block):
    count(block.token_mixer.pool)


def own_mixer_forward(block):
    count(block.token_mixer)


def widen_pool(block):
    block.token_mixer.pool.kernel_size, block.token_mixer.pool.padding = 5, 2


@pytest.mark.parametrize(
    'change',
    [replace_pool, widen_pool, replace_drop_path, replace_mlp, own_pool_forward, own_mixer_forward],
)
@pytest.mark.parametrize('training', [True, False])
def test_parts_of_ones_own_are_computed(change, training, image):
    features = []
    for token_mixing in ('plain', 'fused'):
        model = build(token_mixing).train(training)
        change(model.blocks[1])
        with torch.set_grad_enabled(training):
            features.append(model(image))
    assert_features_close(*features)
    if change not in (replace_drop_path, replace_mlp):
        assert (features[0][-1] - build().eval()(image)[-1]).abs().max() > 1e-3


@pytest.mark.parametrize('kind', ['forward', 'forward_pre'])
@pytest.mark.parametrize('part', ['act', 'fc1', 'fc2', 'drop'])
def test_hooks_of_the_mlp_are_called_in_inference(part, kind, image):
    model, calls = build('fused').eval(), []
    module = getattr(model.blocks[1].mlp, part)
    getattr(module, f'register_{kind}_hook')(lambda *_: calls.append(1))
    with torch.no_grad():
        model(image)
    assert calls


@pytest.mark.parametrize('place', ['fc1', 'fc2'])
def test_what_is_kept_inside_of_a_part_of_the_mlp_is_not_written_over(place, image):
    model, kept = build('fused').eval(), []
    mlp = model.blocks[1].mlp
    inner = getattr(mlp, place)
    setattr(mlp, place, nn.Sequential(inner, nn.Identity()))
    inner.register_forward_hook(lambda _, args, out: kept.append((out, out.clone())))
    with torch.no_grad():
        model(image)
    torch.testing.assert_close(*kept[0], rtol=0, atol=0)


def test_a_convolution_that_was_made_to_dilate_trains_alike(image):
    model = build('plain').eval()
    model.network[3].proj.dilation = model.network[3].proj.padding = (2, 2)
    with torch.no_grad():
        expected = model(image)
    assert_features_close(model(image), expected)


@pytest.mark.parametrize('part', ['mlp', 'mlp.fc2', 'mlp.fc2.weight', 'norm2', 'layer_scale_2'])
@pytest.mark.parametrize('other', [0, 1], ids=['block', 'backbone'])
def test_blocks_that_share_what_is_folded_are_folded_each(part, other, image):
    models = [build(arch=dict(TINY, layers=(1, 1, 2, 1))).eval() for _ in range(2)]
    first, second = models[0].network[4][0], models[other].network[4][1]
    *parents, name = part.split('.')
    for parent in parents:
        first, second = getattr(first, parent), getattr(second, parent)
    setattr(second, name, getattr(first, name))
    whole = nn.ModuleList(models)
    expected = [model(image) for model in models]
    switch_to_deploy(whole)
    for model, features in zip(models, expected):
        assert_features_close(model(image), features)


def test_what_shares_memory_with_a_backbone_is_not_folded(image):
    model, other = build().eval(), build().eval()
    weights = model.state_dict()
    if hasattr(torch.library, 'custom_op'):  # assign is younger than torch 2.1
        other.load_state_dict(weights, assign=True)
    else:
        other.load_state_dict(weights)
    expected = model(image)
    model.switch_to_deploy()
    assert_features_close(other(image), expected)
    third = build().eval()
    third.load_state_dict(weights)
    assert_features_close(third(image), expected)


@pytest.mark.parametrize('part', ['mlp', 'mlp.fc1', 'mlp.fc2', 'mlp.drop', 'norm2'])
@pytest.mark.parametrize('kind', ['forward', 'forward_pre'])
def test_deploy_is_refused_where_a_hook_would_get_other_maps(kind, part, image):
    model = build().eval()
    module = model.blocks[-1].get_submodule(part)
    handle = getattr(module, f'register_{kind}_hook')(lambda *_: None)
    with pytest.raises(RuntimeError, match=f'{part}, which has a hook'):
        model.switch_to_deploy()
    assert not any(block.deployed for block in model.blocks)
    handle.remove()
    model.switch_to_deploy()


def test_deploy_is_refused_where_a_scale_cannot_go_past_the_dropout():
    model = build().eval()
    model.blocks[-1].mlp.drop = nn.Hardtanh()
    with pytest.raises(RuntimeError, match='a Hardtanh'):
        model.switch_to_deploy()


@pytest.mark.parametrize('token_mixing', ['fused', 'plain'])
def test_stochastic_depth_can_be_drawn_in_evaluation(token_mixing, image):
    model = build(token_mixing, drop_path_rate=0.9).eval()
    for each in model.blocks:
        each.drop_path.train()
    with torch.no_grad():
        features = [model(image)[-1] for _ in range(4)]
    assert not all(torch.equal(features[0], other) for other in features[1:])


def test_a_scale_on_the_second_shortcut_alone_is_computed(image):
    model = build('fused')
    model.blocks[0].res_scale_2 = nn.Parameter(torch.full((TINY['embed_dims'][0],), 2.0))
    features = model(image)
    model.token_mixing = 'plain'
    assert_features_close(features, model(image))


def test_a_whole_block_that_is_shared_is_folded_once(image):
    model = build(arch=dict(TINY, layers=(1, 1, 2, 1))).eval()
    model.network[4][1] = model.network[4][0]
    expected = model(image)
    model.switch_to_deploy()
    assert_features_close(model(image), expected)


class Doubled(nn.GroupNorm):
    """A norm of one's own, whose forward is not GroupNorm's."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('place', ['norm1', 'norm2', 'output'])
def test_a_subclass_of_the_norm_is_computed_by_its_own_forward(place, image):
    features = {}
    for form in ('plain', 'fused', 'folded'):
        model = build('plain' if form == 'plain' else 'fused').eval()
        for blocks in (model.blocks,) if place != 'output' else ():
            for part in blocks:
                setattr(part, place, Doubled(1, part.norm1.num_channels))
        if place == 'output':
            model.norm6 = Doubled(1, model.norm6.num_channels)
        if form == 'folded':
            model.switch_to_deploy()
        features[form] = model(image)
    assert_features_close(features['fused'], features['plain'])
    assert_features_close(features['folded'], features['plain'])
    assert (features['plain'][-1] - build('plain').eval()(image)[-1]).abs().max() > 0.1


class Adapted(Conv2d):
    """A convolution with an adapter beside it, as LoRA has one."""

    def forward(self, x):
        return super().forward(x) + x.mean()


class OtherMlp(Mlp):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('part, kind', [('fc1', Adapted), ('fc2', Adapted), ('mlp', OtherMlp)])
def test_deploy_is_refused_for_an_mlp_of_another_forward(part, kind, image):
    model = build().eval()
    mlp = model.blocks[-1].mlp
    (mlp if part == 'mlp' else getattr(mlp, part)).__class__ = kind
    expected = model(image)
    with pytest.raises(RuntimeError, match=f'{part}, a {kind.__name__}'):
        model.switch_to_deploy()
    assert_features_close(model(image), expected)


def test_functional_and_second_derivatives_of_the_plain_definition(image):
    model = build('plain')
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return sum(f.square().mean() for f in torch.func.functional_call(model, parameters, image))

    gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()), create_graph=True)
    for actual, other in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(actual, other)
    expected[0].square().sum().backward()
    assert model.patch_embed.proj.weight.grad.isfinite().all()


@pytest.mark.parametrize('twice', [True, False])
def test_other_derivatives_of_the_operations_are_refused(twice, image):
    model = build('fused')
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return sum(f.square().mean() for f in torch.func.functional_call(model, parameters, image))

    with pytest.raises(RuntimeError):
        if not twice:
            torch.func.grad(loss)(parameters)
        weight = parameters['patch_embed.proj.weight']
        (gradient,) = torch.autograd.grad(loss(parameters), weight, create_graph=True)
        gradient.square().sum().backward()


@pytest.mark.parametrize('part', ['mlp', 'mlp.fc1', 'mlp.fc2'])
def test_deploy_is_refused_for_a_forward_of_ones_own(part, image):
    model = build().eval()
    count(model.blocks[-1].get_submodule(part))
    expected = model(image)
    with pytest.raises(RuntimeError, match=f'cannot fold {part}'):
        model.switch_to_deploy()
    assert_features_close(model(image), expected)


def test_deploy_is_refused_in_training():
    with pytest.raises(RuntimeError, match='eval'):
        build().switch_to_deploy()
