"""The backbone against the paper's figures and its own documented behaviour."""

import pytest
import torch
from helpers import TINY, random_weights
from torch.utils.flop_counter import FlopCounterMode

from mmpoolformer import ARCHS, PoolFormer

# Table 1 of arXiv 2111.11418 (MACs by fvcore) and the official checkpoints (parameters).
PARAMETERS = {
    's12': 11_915_176,
    's24': 21_388_968,
    's36': 30_862_760,
    'm36': 56_172_520,
    'm48': 73_473_448,
}
GMACS = {'s12': 1.8, 's24': 3.4, 's36': 5.0, 'm36': 8.8, 'm48': 11.6}


@pytest.fixture
def tiny():
    return random_weights(PoolFormer(TINY), matrices=0.1, layer_scale=1.0).train()


def test_parameter_count(arch):
    with torch.device('meta'):
        model = PoolFormer(arch, fork_feat=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


def test_macs(arch):
    with torch.device('meta'):
        model, image = PoolFormer(arch, fork_feat=False), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(GMACS[arch], rel=0.02)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('height, width', [(32, 32), (64, 96), (33, 47), (97, 65)])
def test_feature_shapes_strides_and_dtypes(arch, height, width, dtype):
    with torch.device('meta'):
        outs = PoolFormer(arch).to(dtype)(torch.empty(2, 3, height, width, dtype=dtype))
    height, width = (height - 3) // 4 + 1, (width - 3) // 4 + 1  # kernel 7, padding 2, stride 4
    assert isinstance(outs, tuple) and len(outs) == 4
    for out, channels in zip(outs, ARCHS[arch].embed_dims):
        assert (out.shape, out.dtype) == ((2, channels, height, width), dtype)
        height, width = (height + 1) // 2, (width + 1) // 2  # kernel 3, padding 1, stride 2


def test_state_dict_keys_are_the_official_ones(arch):
    keys = {'patch_embed.proj.weight', 'patch_embed.proj.bias'}
    for stage, depth in enumerate(ARCHS[arch].layers):
        for name in ('weight', 'bias'):
            if stage:
                keys.add(f'network.{2 * stage - 1}.proj.{name}')
            for block in range(depth):
                for layer in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
                    keys.add(f'network.{2 * stage}.{block}.{layer}.{name}')
        for block in range(depth):
            keys |= {f'network.{2 * stage}.{block}.layer_scale_{k}' for k in (1, 2)}
    norms = {f'norm{i}.{name}' for i in (0, 2, 4, 6) for name in ('weight', 'bias')}
    head = {f'{layer}.{name}' for layer in ('norm', 'head') for name in ('weight', 'bias')}
    with torch.device('meta'):
        assert set(PoolFormer(arch).state_dict()) == keys | norms
        assert set(PoolFormer(arch, fork_feat=False).state_dict()) == keys | head


def test_initial_values(arch):
    model = PoolFormer(arch, fork_feat=False)
    scales = [p for name, p in model.named_parameters() if 'layer_scale' in name]
    assert all((scale == ARCHS[arch].layer_scale_init_value).all() for scale in scales)
    fc1 = model.network[6][0].mlp.fc1
    assert fc1.weight.std().item() == pytest.approx(0.02, rel=0.02) and not fc1.bias.any()


def test_layer_scale_init_value_overrides_the_table():
    assert (PoolFormer(TINY, layer_scale_init_value=2).network[0][0].layer_scale_1 == 2).all()


def test_logits():
    logits = PoolFormer(TINY, fork_feat=False, num_classes=7)(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)


def test_out_indices_are_a_selection_of_all_features(tiny):
    image = torch.randn(1, 3, 64, 64)
    everything = tiny(image)
    for out_indices in [(0,), (1, 2, 3), (0, 2), (1,)]:
        model = PoolFormer(TINY, out_indices=out_indices)
        missing, _ = model.load_state_dict(tiny.state_dict(), strict=False)
        assert not missing
        for out, i in zip(model(image), out_indices):
            torch.testing.assert_close(out, everything[i], rtol=0, atol=0)


@pytest.mark.parametrize('out_indices', [(0,), (1, 2), (1, 2, 3), (0, 3)])
def test_every_parameter_is_used(out_indices):
    model = PoolFormer(TINY, out_indices=out_indices)
    sum(out.square().sum() for out in model(torch.randn(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())
    norms = {name for name, _ in model.named_children() if name.startswith('norm')}
    assert norms == {f'norm{2 * i}' for i in out_indices}


def test_with_cp_gives_the_same_gradients(tiny):
    checkpointed = PoolFormer(TINY, with_cp=True)
    checkpointed.load_state_dict(tiny.state_dict())
    image = torch.randn(2, 3, 48, 48)
    for model in (tiny, checkpointed):
        sum(out.square().mean() for out in model(image)).backward()
    for (name, expected), actual in zip(tiny.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_with_cp_stores_less():
    stored = {}
    for with_cp in (False, True):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        model = PoolFormer(TINY, with_cp=with_cp)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 64, 64))
        stored[with_cp] = sum(sizes)
    assert stored[True] < stored[False] / 2


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages):
    model = PoolFormer(TINY, frozen_stages=frozen_stages).train()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith('patch_embed.') for name in trainable) == (frozen_stages < 0)
    for stage in range(4):
        prefixes = (f'network.{2 * stage}.', f'network.{2 * stage - 1}.', f'norm{2 * stage}.')
        frozen = stage < frozen_stages
        assert any(name.startswith(prefixes) for name in trainable) != frozen
        assert model.network[2 * stage].training != frozen


def test_frozen_stages_beyond_the_last_built_stage():
    model = PoolFormer(TINY, out_indices=(0, 1), frozen_stages=4)
    assert not any(p.requires_grad for p in model.parameters())


def test_stochastic_depth_grows_linearly_over_all_blocks():
    arch = dict(layers=(1, 2, 3, 1), embed_dims=(8, 8, 8, 8))
    for out_indices in [(0, 1, 2, 3), (0, 1)]:  # the same rates where stages are left out
        model = PoolFormer(arch, drop_path_rate=0.6, out_indices=out_indices)
        rates = [block.drop_path.drop_prob for stage in model.network[::2] for block in stage]
        assert rates == pytest.approx([0.1 * i for i in range(7)][: len(rates)])


def test_stochastic_depth_drops_whole_samples_in_training_only(tiny):
    block = PoolFormer(TINY, drop_path_rate=0.5).network[-1][0]
    block.load_state_dict(tiny.network[-1][0].state_dict())
    x = torch.randn(64, 32, 2, 2)
    full = block.eval()(x)
    torch.testing.assert_close(full, tiny.network[-1][0](x))
    untouched = (block.train()(x) == x).flatten(1).all(1)
    assert 0 < untouched.sum() < 64


def test_norm_and_activation_are_configurable():
    model = PoolFormer(TINY, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    assert isinstance(model.norm6, torch.nn.BatchNorm2d)
    assert isinstance(model.network[0][0].mlp.act, torch.nn.ReLU)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(arch='s13'), ['s13', 's12', 'm48']),
        (dict(arch=12), ['12', 's12']),
        (dict(arch=dict(layers=(1, 1, 1))), ['embed_dims', 'layers']),
        (dict(arch=dict(TINY, depth=3)), ['depth', 'mlp_ratios']),
        (dict(arch=dict(TINY, layers=(1, 1, 1))), ['(1, 1, 1)', '4']),
        (dict(arch=dict(TINY, embed_dims=(8, 8, 8, -8))), ['-8', 'positive']),
        (dict(out_indices=(0, 4)), ['(0, 4)', '0 to 3']),
        (dict(out_indices=()), ['()', '0 to 3']),
        (dict(out_indices=(2, 1)), ['(2, 1)', 'increasing']),
        (dict(out_indices=3), ['3', '(0, 1, 2, 3)']),
        (dict(drop_path_rate=1.0), ['1.0', '[0, 1)']),
        (dict(drop_path_rate=-0.1), ['-0.1', '[0, 1)']),
        (dict(drop_rate='a'), ["'a'", '[0, 1)']),
        (dict(layer_scale_init_value='1'), ["'1'", 'number']),
        (dict(arch='poolformerv2_s12', layer_scale_init_value=1), ['no LayerScale']),
        (dict(arch=dict(TINY, layer_scale_init_value=None)), ['None', 'number']),
        (dict(frozen_stages=5), ['5', '-1', '4']),
        (dict(in_channels=0), ['in_channels=0', 'positive']),
        (dict(pool_size=2), ['pool_size=2', 'odd']),
        (dict(num_classes=0, fork_feat=False), ['num_classes=0', 'positive']),
    ],
    ids=str,
)
def test_bad_arguments_name_the_value_and_the_allowed_ones(kwargs, words):
    with pytest.raises((ValueError, TypeError)) as error:
        PoolFormer(**kwargs)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64)])
def test_bad_inputs_name_their_shape_and_the_smallest_one(tiny, shape):
    with pytest.raises(ValueError, match='at least 32') as error:
        tiny(torch.randn(shape))
    assert str(shape) in str(error.value)
