"""The frame of the family: architectures, arguments and options, with every kind of norm."""

import re

import pytest
import torch
from helpers import (
    KINDS,
    TINY_HEADS,
    random_weights,
    tiny_metaformer,
)
from plain_mixers import plain_attention, plain_spatial_mlp
from torch.nn import functional as F

from mmpoolformer import (
    METAFORMERS,
    MetaFormer,
    PoolFormer,
)
from mmpoolformer.archs import ABLATIONS


def plain_ablation(model, x):
    """Logits of an architecture of the first paper, as it writes them, from the weights alone."""
    weights = model.state_dict()
    arch = model.arch

    def norm(x, key):
        affine = weights[f'{key}.weight'][:, None, None], weights[f'{key}.bias'][:, None, None]
        axes = (1, 2, 3) if arch.norm == 'group' else 1
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * affine[0] + affine[1]

    def conv(x, key, stride, padding):
        return F.conv2d(x, weights[f'{key}.weight'], weights[f'{key}.bias'], stride, padding)

    x = conv(x, 'patch_embed.proj', 4, 2)
    for i, stage in enumerate(model.network[::2]):
        if i > 0:
            x = conv(x, f'network.{2 * i - 1}.proj', 2, 1)
        if arch.pos_embeds[i] is not None:
            x = x + weights[f'pos_embed{2 * i}']
        for j in range(len(stage)):
            key = f'network.{2 * i}.{j}'
            scale = [weights[f'{key}.layer_scale_{n}'][:, None, None] for n in (1, 2)]
            normed = norm(x, f'{key}.norm1')
            kind = type(stage[j].token_mixer).__name__
            if kind == 'Attention':
                bias = weights[f'{key}.token_mixer.proj.bias'][:, None, None]
                mixed = plain_attention(stage[j].token_mixer, normed) + bias
            elif kind == 'SpatialMlp':
                mixed = plain_spatial_mlp(stage[j].token_mixer, normed)
            elif kind == 'Pooling':
                mixed = F.avg_pool2d(normed, 3, 1, 1, count_include_pad=False) - normed
            else:
                mixed = normed
            x = x + scale[0] * mixed
            hidden = F.gelu(conv(norm(x, f'{key}.norm2'), f'{key}.mlp.fc1', 1, 0))
            x = x + scale[1] * conv(hidden, f'{key}.mlp.fc2', 1, 0)
    return F.linear(norm(x, 'norm').mean((2, 3)), weights['head.weight'], weights['head.bias'])


@pytest.mark.parametrize('name', list(ABLATIONS))
def test_ablations_compute_their_definition(name):
    arch = dict(METAFORMERS[name]._asdict(), **TINY_HEADS)
    model = random_weights(MetaFormer(arch, fork_feat=False, num_classes=10))
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain_ablation(model, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(arch='caformer_s19'), ['caformer_s19', 'caformer_s18']),
        (dict(token_mixers='pool'), ['pool', 'pooling', 'TOKEN_MIXERS']),
        (dict(token_mixers=['pooling', 'pooling']), ['token_mixers', '4']),
        (dict(token_mixers=5), ['token_mixers=5', '4 in a list']),
        (dict(token_mixers=[]), ['token_mixers=[]', '4 in a list']),
        (dict(token_mixers=''), ["token_mixers=''", 'pooling']),
        (dict(token_mixers=['pooling', None, 'pooling', 'pooling']), ['None', 'pooling']),
        (dict(token_mixers=dict(type='pooling', pool_size=2)), ['pool_size=2', 'odd']),
        (dict(token_mixers=dict(type='sep_conv', kernel_size=4)), ['kernel_size=4', 'odd']),
        (dict(token_mixers=dict(type='attention', head_dim=0)), ['head_dim=0', '64 channels']),
        (dict(token_mixers=dict(type='random', size=7)), ['size=7', 'height and width']),
        (dict(token_mixers=dict(type='random', size=(7.0, 7))), ['7.0', 'height and width']),
        (dict(token_mixers=dict(type='sep_conv', expansion_ratio=0)), ['=0', 'positive']),
        (dict(token_mixers=dict(type='attention', head_dim='32')), ["'32'", '64 channels']),
        (dict(input_size=8), ['input_size', '32']),
        (dict(input_size=None), ['input_size=None', '32']),
        (dict(arch=dict(TINY_HEADS, mlp_bias='no')), ["mlp_bias']='no'", 'True']),
        (dict(arch=dict(TINY_HEADS, pos_embeds=(None, None, None, '7'))), ['pos_embeds', "'7'"]),
        (dict(arch='caformer_s18', fork_feat=False), ['fork_feat', '2210.13452']),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError) as error:
        MetaFormer(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_poolformer_is_the_all_pooling_case():
    pool, meta = PoolFormer('s12'), MetaFormer('poolformer_s12')
    assert list(pool.state_dict()) == list(meta.state_dict())
    assert all(block.can_fuse for block in meta.blocks)
    with pytest.raises(ValueError, match="type='MetaFormer'"):
        PoolFormer('caformer_s18')


@pytest.mark.parametrize('name', list(ABLATIONS))
def test_ablations_run_at_their_size_and_hybrids_with_attention_at_any(name):
    model = MetaFormer(dict(METAFORMERS[name]._asdict(), **TINY_HEADS)).eval()
    model(torch.randn(1, 3, 224, 224))
    if 'f' not in name.split('_')[1]:
        assert model(torch.randn(1, 3, 100, 64))[3].shape[2:] == (4, 2)


@pytest.mark.parametrize('name', KINDS)
def test_deployed_features_are_the_same(name):
    model = random_weights(tiny_metaformer(name))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        model.switch_to_deploy()
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    assert 'network.0.0.norm2.weight' not in model.state_dict()


@pytest.mark.parametrize('name', KINDS)
def test_out_indices_choose_the_features(name):
    whole, part = (
        random_weights(tiny_metaformer(name)),
        tiny_metaformer(name, out_indices=(1, 2)).eval(),
    )
    assert not part.eval().load_state_dict(whole.state_dict(), strict=False).missing_keys
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(part(image), whole(image)[1:3], rtol=0, atol=0)


@pytest.mark.parametrize('name', KINDS)
def test_recomputed_blocks_have_the_same_gradients(name):
    gradients = []
    for with_cp in (False, True):
        model = random_weights(tiny_metaformer(name, with_cp=with_cp)).train()
        sum(f.square().mean() for f in model(torch.ones(1, 3, 64, 64))).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('name', KINDS)
def test_frozen_stages_and_no_others_keep_their_parameters(name):
    model = tiny_metaformer(name, frozen_stages=3)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        key for key, _ in model.named_parameters() if re.match(r'network\.[56]\.|norm6', key)
    }


@pytest.mark.parametrize('name', KINDS)
def test_other_sizes_in_16_bits(name):
    features = tiny_metaformer(name).bfloat16()(torch.randn(1, 3, 96, 64, dtype=torch.bfloat16))
    assert all(f.dtype == torch.bfloat16 and f.isfinite().all() for f in features)


def test_the_pooling_blocks_of_a_hybrid_can_be_fused():
    mixers = ['pooling', 'pooling', 'sep_conv', 'attention']
    model = random_weights(MetaFormer(TINY_HEADS, token_mixers=mixers, token_mixing='fused'))
    assert [block.can_fuse for block in model.blocks] == [True, True, False, False]
    image = torch.randn(1, 3, 64, 64)
    fused = model.eval()(image)
    model.token_mixing = 'plain'
    torch.testing.assert_close(fused, model(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='not Identity and OneGroupNorm'):
        MetaFormer(TINY_HEADS, token_mixers='identity', token_mixing='fused')
