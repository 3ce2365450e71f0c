"""The MetaFormer family against timm, and its token mixers against plain definitions."""

import copy
import re
import subprocess
import sys

import pytest
import timm
import torch
from conftest import CONFIGS, DIGITS, FAMILY, ROOT, needs_whole_graphs
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.nn import functional as F

from mmpoolformer import (
    METAFORMERS,
    TOKEN_MIXERS,
    CheckpointError,
    MetaFormer,
    PoolFormer,
    SwapError,
    swap_backbone,
)
from mmpoolformer.archs import ABLATIONS, BASELINES, official_weights
from mmpoolformer.checkpoints import convert, load_pretrained, register_loaders
from mmpoolformer.deploy import compile_for_inference
from mmpoolformer.metaformer import OneGroupNorm
from mmpoolformer.zoo import find_config

IN_TIMM = [name for name in BASELINES if name in timm.list_models()]
TINY = dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = 0.05 * noise if parameter.ndim > 1 else 0.5 + 0.1 * noise
    return model.eval()


def without_out_norms(model):
    """timm has no output norms for dense prediction."""
    for i in model.out_indices:
        setattr(model, f'norm{2 * i}', nn.Identity())
    return model.eval()


def assert_same_features(own, reference, size):
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        features = without_out_norms(own)(image)
        expected = reference.forward_intermediates(image, intermediates_only=True)
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


# Against timm --------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(64, 96), (81, 63)], ids=['even', 'odd'])
@pytest.mark.parametrize(
    'name',
    ['poolformerv2_s12', 'poolformerv2_s24', 'convformer_s18', 'convformer_s36', 'caformer_s18',
     'caformer_s36'],
)  # fmt: skip
def test_features_equal_timms_with_weights_from_a_timm_file(name, size, tmp_path):
    reference = randomise(timm.create_model(name))
    torch.save(reference.state_dict(), tmp_path / 'timm.pth')
    model = MetaFormer(name)
    report = load_pretrained(model, str(tmp_path / 'timm.pth'))
    assert report.layout == 'timm' and report.arch == name
    assert_same_features(model, reference, size)


class PlainRandomMixing(nn.Module):
    """The mixer of RandFormer in timm's frame, which has no RandFormer itself."""

    def __init__(self, positions):
        super().__init__()
        self.random_matrix = nn.Parameter(torch.zeros(positions, positions))

    def forward(self, x):
        return torch.einsum('mn,bcn->bcm', self.random_matrix, x.flatten(2)).reshape(x.shape)


@pytest.mark.parametrize(
    'name, mixers',
    [
        ('identityformer_s12', [nn.Identity] * 4),
        ('randformer_s12', [nn.Identity, nn.Identity, lambda: PlainRandomMixing(14 * 14),
                            lambda: PlainRandomMixing(7 * 7)]),
    ],
)  # fmt: skip
def test_features_equal_those_of_timms_frame_with_the_plain_mixer(name, mixers, tmp_path):
    reference = timm.create_model('poolformerv2_s12')
    for stage, mixer in zip(reference.stages, mixers, strict=True):
        for block in stage.blocks:
            block.token_mixer = mixer()
    torch.save(randomise(reference).state_dict(), tmp_path / 'timm.pth')
    model = MetaFormer(name)
    load_pretrained(model, str(tmp_path / 'timm.pth'))
    assert_same_features(model, reference, (224, 224))


@pytest.mark.parametrize('name', IN_TIMM)
def test_parameter_count_equals_timms(name):
    with torch.device('meta'):
        own, reference = MetaFormer(name), timm.create_model(name)
    own = sum(p.numel() for key, p in own.named_parameters() if not re.match(r'norm\d', key))
    assert own == sum(
        p.numel() for key, p in reference.named_parameters() if not key.startswith('head')
    )


# The official layouts ------------------------------------------------------------------------


def official_baseline_key(key):
    """The name of a tensor in sail-sg/metaformer, from timm's."""
    for pattern, replacement in (
        (r'^stem\.conv', 'downsample_layers.0.conv'),
        (r'^stem\.norm', 'downsample_layers.0.post_norm'),
        (r'^stages\.(\d)\.downsample\.norm', r'downsample_layers.\1.pre_norm'),
        (r'^stages\.(\d)\.downsample\.conv', r'downsample_layers.\1.conv'),
        (r'^stages\.(\d)\.blocks\.', r'stages.\1.'),
        (r'^head\.norm', 'norm'),
        (r'^head\.fc', 'head'),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def official_baseline(reference):
    """The weights of a model of timm's as sail-sg/metaformer has them."""
    weights = {}
    for key, tensor in reference.state_dict().items():
        if re.search(r'(fc\d|pwconv\d)\.weight', key) and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]  # linear layers there
        weights[official_baseline_key(key)] = tensor
    return weights


SECOND_PAPER = ['poolformerv2_s12', 'convformer_s18', 'caformer_s18']


@pytest.mark.parametrize('name', SECOND_PAPER)
def test_official_files_of_the_second_paper_load(name, tmp_path):
    reference = randomise(timm.create_model(name))
    torch.save(official_baseline(reference), tmp_path / 'official.pth')
    model = MetaFormer(name)
    report = load_pretrained(model, str(tmp_path / 'official.pth'))
    assert report.layout == 'baselines' and report.arch == name
    assert_same_features(model, reference, (64, 64))


@pytest.mark.parametrize('layout', ['timm', 'baselines'])
@pytest.mark.parametrize('name', SECOND_PAPER)
def test_load_from_takes_classifiers_of_the_second_paper(name, layout, tmp_path):
    register_loaders(replace=True)
    reference = randomise(timm.create_model(name))
    weights = reference.state_dict() if layout == 'timm' else official_baseline(reference)
    torch.save(weights, tmp_path / 'classifier.pth')
    model = nn.Module()
    model.backbone = MetaFormer(name)
    missing, unexpected = model.load_state_dict(
        CheckpointLoader.load_checkpoint(str(tmp_path / 'classifier.pth'))['state_dict'],
        strict=False,
    )
    assert {key.split('.')[1] for key in missing} == {'norm0', 'norm2', 'norm4', 'norm6'}
    assert {key.split('.')[1] for key in unexpected} <= {'norm', 'head'}
    assert_same_features(model.backbone, reference, (64, 64))


@pytest.mark.parametrize('name', ['metaformer_pppa_s12', 'metaformer_ppaa_s12'])
def test_load_from_takes_classifiers_of_the_hybrids(name, tmp_path):
    register_loaders(replace=True)
    source = randomise(MetaFormer(name, fork_feat=False))
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    written = convert(str(tmp_path / 'own.pth'), 'official')[1]
    torch.save(written, tmp_path / 'official.pth')
    for file in ('own.pth', 'official.pth'):
        read = CheckpointLoader.load_checkpoint(str(tmp_path / file))['state_dict']
        expected = {f'backbone.{key}': tensor for key, tensor in source.state_dict().items()}
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[key], expected[key]) for key in read)


@pytest.mark.parametrize('name', SECOND_PAPER)
def test_files_of_the_second_paper_are_converted_to_what_each_source_has(name, tmp_path):
    reference = randomise(timm.create_model(name))
    contents = {'timm': reference.state_dict(), 'baselines': official_baseline(reference)}
    for source, weights in contents.items():
        torch.save(weights, tmp_path / f'{source}.pth')
        for target, expected in contents.items():
            written = convert(str(tmp_path / f'{source}.pth'), target)[1]
            assert written.keys() == expected.keys()
            assert all(torch.equal(written[key], expected[key]) for key in expected)
        own = convert(str(tmp_path / f'{source}.pth'), 'official')[1]
        shapes = {key: tensor.shape for key, tensor in MetaFormer(name).state_dict().items()}
        assert all(own[key].shape == shapes[key] for key in own if key in shapes)
        assert len(own.keys() & shapes.keys()) == len(shapes) - 8  # the output norms


# Where the official network has the position embeddings, as entries of their own.
@pytest.mark.parametrize('name, entry', [('metaformer_pppa_s12', 6), ('metaformer_ppaa_s12', 4)])
def test_official_files_of_the_hybrids_load(name, entry, tmp_path):
    source = randomise(MetaFormer(name, fork_feat=False))
    weights = {}
    for key, tensor in source.state_dict().items():
        match = re.match(r'network\.(\d+)\.(.*)', key)
        if match:
            key = f'network.{int(match[1]) + (int(match[1]) >= entry)}.{match[2]}'
        weights[key.replace(f'pos_embed{entry}', f'network.{entry}.pos_embed')] = tensor
    torch.save(weights, tmp_path / 'official.pth')
    model = MetaFormer(name, fork_feat=False)
    report = load_pretrained(model, str(tmp_path / 'official.pth'))
    assert (report.layout, report.arch) == ('official', name)
    assert_same_tensors(model, source)
    # And back: what we write has the official names again.
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    written = convert(str(tmp_path / 'own.pth'), 'official')[1]
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def assert_same_tensors(model, source):
    tensors = model.state_dict()
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensors[key], tensor), key


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
    arch = dict(METAFORMERS[name]._asdict(), **TINY)
    model = randomise(MetaFormer(arch, fork_feat=False, num_classes=10))
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain_ablation(model, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['metaformer_ppff_s12', 'caformer_s18', 'randformer_s12'])
def test_own_files_load(name, tmp_path):
    source = randomise(MetaFormer(name))
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    model = MetaFormer(name)
    load_pretrained(model, str(tmp_path / 'own.pth'))
    assert_same_tensors(model, source)


class Depthwise(nn.Module):
    """A token mixer of a user's own, with parameters and a count of its own."""

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    'build',
    [
        lambda: MetaFormer(TINY, token_mixers=Depthwise),
        lambda: tiny('caformer_s18', out_indices=(3,)),
        lambda: PoolFormer(TINY, out_indices=(3,)),
    ],
    ids=['mixer of ones own', 'last norm alone', 'last norm of a PoolFormer alone'],
)
def test_own_files_of_unusual_backbones_load(build, tmp_path):
    source, model = randomise(build()), build()
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    report = load_pretrained(model, str(tmp_path / 'own.pth'))
    assert report.layout == 'official'
    assert_same_tensors(model, source)


@pytest.mark.parametrize(
    'name, layout',
    [('metaformer_pppf_s12', 'hf'), ('metaformer_pppf_s12', 'mmpretrain'),
     ('metaformer_ppaa_s12', 'timm'), ('poolformer_s12', 'baselines')],
)  # fmt: skip
def test_no_half_backbone_is_written(name, layout, tmp_path):
    torch.save(MetaFormer(name).state_dict(), tmp_path / 'own.pth')
    with pytest.raises(CheckpointError, match=f'cannot be written in the layout {layout}'):
        convert(str(tmp_path / 'own.pth'), layout)


@pytest.mark.parametrize(
    'file, model, words',
    [
        ('poolformerv2_s12', lambda: PoolFormer('s12'), 'poolformerv2_s12 or identityformer_s12'),
        ('poolformer_s12', lambda: MetaFormer('poolformer_s12', token_mixers='sep_conv'),
         'is s12: the backbone has other token mixers'),
        ('poolformer_s12', lambda: deployed(PoolFormer('s12')), 'build it anew'),
    ],
    ids=['look-alikes', 'other mixers', 'deployed'],
)  # fmt: skip
def test_errors_say_what_to_do(file, model, words, tmp_path):
    torch.save(MetaFormer(file).state_dict(), tmp_path / 'own.pth')
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(model(), str(tmp_path / 'own.pth'))


def deployed(model):
    model.eval().switch_to_deploy()
    return model


@pytest.mark.parametrize(
    'file, model', [('caformer_s18', 'convformer_s18'), ('caformer_s18', None)]
)
def test_weights_of_another_mixer_are_refused(file, model, tmp_path):
    torch.save(MetaFormer(file).state_dict(), tmp_path / 'own.pth')
    arch = dict(layers=(3, 3, 9, 3), embed_dims=(64, 128, 320, 512))
    model = MetaFormer(model) if model else PoolFormer(arch)
    with pytest.raises(CheckpointError, match='caformer_s18'):
        load_pretrained(model, str(tmp_path / 'own.pth'))


# Token mixers --------------------------------------------------------------------------------


def plain_attention(mixer, x):
    batch, dim, height, width = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        tokens = x[b].reshape(dim, -1).T
        query, key, value = (tokens @ mixer.qkv.weight.T).split(dim, dim=1)
        heads = []
        for h in range(dim // 32):
            part = slice(32 * h, 32 * h + 32)
            scores = query[:, part] @ key[:, part].T / 32**0.5
            heads.append(scores.softmax(dim=1) @ value[:, part])
        mixed = torch.cat(heads, dim=1) @ mixer.proj.weight.T
        out[b] = mixed.T.reshape(dim, height, width)
    return out


def plain_spatial_mlp(mixer, x):
    return (x.flatten(2) @ mixer.fc.weight.T).reshape(x.shape)


def plain_random(mixer, x):
    return torch.einsum('mn,bcn->bcm', mixer.random_matrix, x.flatten(2)).reshape(x.shape)


def plain_sep_conv(mixer, x):
    x = F.conv2d(x, mixer.pwconv1.weight)
    x = mixer.act1.scale * x.clamp(min=0).square() + mixer.act1.bias
    x = F.conv2d(x, mixer.dwconv.weight, padding=3, groups=x.shape[1])
    return F.conv2d(x, mixer.pwconv2.weight)


@pytest.mark.parametrize(
    'name, plain',
    [
        ('identity', lambda mixer, x: x),
        ('attention', plain_attention),
        ('spatial_mlp', plain_spatial_mlp),
        ('random', plain_random),
        ('sep_conv', plain_sep_conv),
    ],
)
def test_token_mixer_computes_its_definition(name, plain):
    size = dict(size=(5, 7)) if name in ('spatial_mlp', 'random') else {}
    mixer = randomise(TOKEN_MIXERS.build(dict(type=name, dim=64, **size)))
    x = torch.randn(2, 64, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), plain(mixer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mixer', sorted(set(TOKEN_MIXERS.module_dict)))
def test_every_mixer_in_the_frame_gives_four_maps_with_gradients(mixer):
    model = MetaFormer(TINY, token_mixers=mixer, input_size=(64, 96))
    features = model(torch.randn(2, 3, 64, 96))
    assert [f.shape[1:] for f in features] == [(32, 16, 24), (32, 8, 12), (64, 4, 6), (64, 2, 3)]
    sum(f.square().mean() for f in features).backward()
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    frozen = {key.split('.')[-1] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({'random_matrix'} if mixer == 'random' else set())


@pytest.mark.parametrize('name', ['poolformerv2_s12', 'convformer_s18', 'caformer_s18'])
def test_initial_weights_are_spread_as_timms(name):
    own = MetaFormer(name).network[6][-1].state_dict()
    reference = timm.create_model(name).stages[3].blocks[-1].state_dict()
    for key, tensor in reference.items():
        key = re.sub(r'(res_scale)(\d)\.scale', r'\1_\2', key)
        if tensor.ndim > 1:
            torch.testing.assert_close(own[key].std(), tensor.std(), rtol=0.1, atol=1e-4)
        else:
            assert torch.equal(own[key], tensor), key


def test_one_mixer_per_stage():
    mixers = ['identity', 'pooling', 'sep_conv', 'attention']
    model = MetaFormer(TINY, token_mixers=mixers)
    kinds = [type(stage[0].token_mixer).__name__ for stage in model.network[::2]]
    assert kinds == ['Identity', 'Pooling', 'SepConv', 'Attention']


@pytest.mark.parametrize('mixer', ['spatial_mlp', 'random'])
def test_a_mixer_of_one_size_refuses_another_one(mixer):
    model = MetaFormer(TINY, token_mixers=mixer, input_size=64)
    with pytest.raises(ValueError, match=r'made for maps of 16×16, not 24×24.*input_size'):
        model(torch.randn(1, 3, 96, 96))


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
        (dict(arch=dict(TINY, baseline='no')), ["baseline']='no'", 'True']),
        (dict(arch=dict(TINY, pos_embeds=(None, None, None, '7'))), ['pos_embeds', "'7'"]),
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
    model = MetaFormer(dict(METAFORMERS[name]._asdict(), **TINY)).eval()
    model(torch.randn(1, 3, 224, 224))
    if 'f' not in name.split('_')[1]:
        assert model(torch.randn(1, 3, 100, 64))[3].shape[2:] == (4, 2)


# The backbone's options ------------------------------------------------------------------------

KINDS = ['poolformerv2_s12', 'caformer_s18', 'metaformer_ppaa_s12']


def tiny(name, **options):
    return MetaFormer(dict(METAFORMERS[name]._asdict(), **TINY), **options)


@pytest.mark.parametrize('name', KINDS)
def test_deployed_features_are_the_same(name):
    model = randomise(tiny(name))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        model.switch_to_deploy()
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    assert 'network.0.0.norm2.weight' not in model.state_dict()


@pytest.mark.parametrize('name', KINDS)
def test_out_indices_choose_the_features(name):
    whole, part = randomise(tiny(name)), tiny(name, out_indices=(1, 2)).eval()
    assert not part.load_state_dict(whole.state_dict(), strict=False).missing_keys
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(part(image), whole(image)[1:3], rtol=0, atol=0)


@pytest.mark.parametrize('name', KINDS)
def test_recomputed_blocks_have_the_same_gradients(name):
    gradients = []
    for with_cp in (False, True):
        model = randomise(tiny(name, with_cp=with_cp)).train()
        sum(f.square().mean() for f in model(torch.ones(1, 3, 64, 64))).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('name', KINDS)
def test_frozen_stages_and_no_others_keep_their_parameters(name):
    model = tiny(name, frozen_stages=3)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        key for key, _ in model.named_parameters() if re.match(r'network\.[56]\.|norm6', key)
    }


@pytest.mark.parametrize('name', KINDS)
def test_other_sizes_in_16_bits(name):
    features = tiny(name).bfloat16()(torch.randn(1, 3, 96, 64, dtype=torch.bfloat16))
    assert all(f.dtype == torch.bfloat16 and f.isfinite().all() for f in features)


@pytest.mark.parametrize('name', ['poolformer_s12', *KINDS])
def test_weight_decay_of_norms_can_be_switched_off(name):
    model = nn.ModuleDict(dict(backbone=tiny(name)))
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    decays = {
        id(parameter): group['weight_decay']
        for group in build_optim_wrapper(model, cfg).param_groups
        for parameter in group['params']
    }
    norms = {key: p for key, p in model.named_parameters() if 'norm' in key}
    assert norms and all(decays[id(parameter)] == 0 for parameter in norms.values())


def test_init_cfg_of_a_mixer_is_heeded():
    class Own(BaseModule):
        def __init__(self, dim):
            super().__init__(init_cfg=dict(type='Constant', layer='Conv2d', val=3.0))
            self.conv = nn.Conv2d(dim, dim, 1)

        def forward(self, x):
            return self.conv(x)

    model = MetaFormer(TINY, token_mixers=Own)
    model.init_weights()
    assert all((block.token_mixer.conv.weight == 3).all() for block in model.blocks)


def test_the_pooling_blocks_of_a_hybrid_can_be_fused():
    mixers = ['pooling', 'pooling', 'sep_conv', 'attention']
    model = randomise(MetaFormer(TINY, token_mixers=mixers, token_mixing='fused'))
    assert [block.can_fuse for block in model.blocks] == [True, True, False, False]
    image = torch.randn(1, 3, 64, 64)
    fused = model.eval()(image)
    model.token_mixing = 'plain'
    torch.testing.assert_close(fused, model(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='not Identity and OneGroupNorm'):
        MetaFormer(TINY, token_mixers='identity', token_mixing='fused')


@pytest.mark.parametrize('name', ['poolformerv2_s12', 'identityformer_s12', 'metaformer_id_s12'])
def test_a_frozen_stem_trains_on_small_channels_last_images(name):
    # PyTorch's GroupNorm crashes in the backward of such maps.
    model = tiny(name, frozen_stages=0).train()
    image = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    sum(feature.mean() for feature in model(image)).backward()
    assert model.network[0][0].norm1.weight.grad.isfinite().all()


@pytest.mark.parametrize('bias', [True, False])
def test_one_group_norm_keeps_its_digits_in_channels_last(bias):
    norm = OneGroupNorm(8, bias=bias)
    x = (1e4 + torch.randn(2, 8, 16, 16)).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().contiguous().requires_grad_()
    actual, expected = norm(x), F.group_norm(exact, 1, eps=norm.eps)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(2, 8, 16, 16)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
    assert (norm.bias is not None) == bias


@needs_whole_graphs
def test_compile_for_inference_takes_changing_sizes_of_channel_norms():
    model = tiny('caformer_s18', out_indices=(0,)).eval()
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_for_inference(model)
    with torch.no_grad():
        for size in ((64, 64), (96, 64), (64, 160)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(model(image), reference(image), rtol=1e-4, atol=1e-5)


def test_attention_takes_memory_in_proportion_to_the_pixels():
    """Of four times the pixels, four times the memory; the scores alone would be sixteen."""
    from torch.profiler import ProfilerActivity, profile

    def kept(side):
        mixer = TOKEN_MIXERS.build(dict(type='attention', dim=64))
        x = torch.randn(1, 64, side, side)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            out = mixer(x)
        del out
        return sum(event.self_cpu_memory_usage for event in profiler.key_averages())

    assert kept(64) < 4.2 * kept(32)


# In configs ----------------------------------------------------------------------------------


def test_a_mixer_of_ones_own_works_as_documented(tmp_path, monkeypatch):
    page = (ROOT / 'docs' / 'metaformer.md').read_text().split('## One of your own')[1]
    module, config = re.findall(r'```python\n(.*?)```', page, flags=re.S)
    (tmp_path / 'shift.py').write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    base = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
    (tmp_path / 'own.py').write_text(f'_base_ = {str(base)!r}\n{config}')
    cfg = Config.fromfile(tmp_path / 'own.py')
    init_default_scope('mmdet')
    try:
        with torch.device('meta'):
            backbone = MODELS.build(cfg.model).backbone
    finally:
        TOKEN_MIXERS._module_dict.pop('shift')
    kinds = [type(stage[0].token_mixer).__name__ for stage in backbone.network[::2]]
    assert kinds == ['Shift', 'Pooling', 'Pooling', 'Shift']

    command = re.search(r'```shell\n(.*?) +#', page)[1]
    run = subprocess.run(
        command.replace('tools/', f'{ROOT}/tools/').replace('python', sys.executable),
        shell=True, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert 'data not found' in run.stderr and 'shift' not in run.stderr


@pytest.mark.parametrize(
    'config', [path for path in FAMILY if path not in DIGITS], ids=lambda path: path.stem
)
def test_config_starts_from_the_official_weights(config):
    backbone = Config.fromfile(config).model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=official_weights(backbone.arch))


@pytest.fixture(scope='module')
def retinanet():
    return Config.fromfile(find_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'))


@pytest.mark.parametrize(
    'arch, options',
    [
        ('s12', dict(token_mixers='attention')),
        ('s12', dict(token_mixers=Depthwise)),
        ('caformer_s18', dict(token_mixers=None)),
        (METAFORMERS['caformer_s18'], {}),
        (METAFORMERS['caformer_s18']._asdict(), {}),
        ('randformer_s12', dict(input_size=(800, 1344))),
    ],
    ids=['mixer', 'class', 'its own', 'Arch', 'dict', 'size'],
)
def test_swap_gives_a_metaformer_that_builds(arch, options, retinanet):
    cfg = swap_backbone(retinanet, arch, checkpoint=None, **options)
    init_default_scope('mmdet')
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model).backbone
    assert type(backbone) is MetaFormer


@pytest.mark.parametrize('name', ['randformer_s12', 'metaformer_ppff_s12'])
def test_swap_refuses_a_mixer_of_one_size(name, retinanet):
    with pytest.raises(SwapError, match=r'one size only.*input_size'):
        swap_backbone(retinanet, name)


@pytest.mark.parametrize(
    'arch, options, words',
    [
        ('s12', dict(token_mixers='attention'), ['s12', 'attention', 'checkpoint=None']),
        ('randformer_s12', dict(input_size=(800, 1344)), ['224×224', '1344', 'checkpoint=None']),
        ('s12', dict(token_mixers=5), ['token_mixers=5', '4 in a list']),
        ('s12', dict(token_mixers=['pooling'] * 2), ['pooling', '4 in a list']),
        (METAFORMERS['caformer_s18'], {}, ['caformer_s18', 'checkpoint=None']),
    ],
    ids=['mixer', 'size', 'number', 'two', 'arch of ones own'],
)
def test_swap_refuses_mixers_without_official_weights(arch, options, words, retinanet):
    with pytest.raises(ValueError) as error:
        swap_backbone(retinanet, arch, **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('input_size', [224, [224, 224]])
def test_swap_takes_official_weights_at_their_size(input_size, retinanet):
    cfg = swap_backbone(retinanet, 'randformer_s12', input_size=input_size)
    assert cfg.model.backbone.init_cfg.checkpoint == official_weights('randformer_s12')


@pytest.mark.parametrize('name', ['caformer_s18', 'metaformer_ppaa_s12'])
def test_swap_takes_every_architecture(name, retinanet):
    cfg = swap_backbone(retinanet, name)
    assert (cfg.model.backbone.type, cfg.model.backbone.arch) == ('MetaFormer', name)
    assert name in cfg.model.backbone.init_cfg.checkpoint
    init_default_scope('mmdet')
    with torch.device('meta'):
        assert isinstance(MODELS.build(cfg.model).backbone, MetaFormer)
