"""Files of the whole family, as each source writes them."""

import re

import pytest
import timm
import torch
from helpers import (
    TINY,
    TINY_HEADS,
    Depthwise,
    assert_same_features,
    random_weights,
    tiny_metaformer,
)
from mmengine.runner import CheckpointLoader
from torch import nn

from mmpoolformer import (
    CheckpointError,
    MetaFormer,
    PoolFormer,
)
from mmpoolformer.checkpoints import convert, load_pretrained, register_loaders
from mmpoolformer.checkpoints.class_names import are_colours
from mmpoolformer.checkpoints.recognition import find_weights


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
    reference = random_weights(timm.create_model(name))
    torch.save(official_baseline(reference), tmp_path / 'official.pth')
    model = MetaFormer(name)
    report = load_pretrained(model, str(tmp_path / 'official.pth'))
    assert report.layout == 'baselines' and report.arch == name
    assert_same_features(model, reference, (64, 64))


@pytest.mark.parametrize('layout', ['timm', 'baselines'])
@pytest.mark.parametrize('name', SECOND_PAPER)
def test_load_from_takes_classifiers_of_the_second_paper(name, layout, tmp_path):
    register_loaders(replace=True)
    reference = random_weights(timm.create_model(name))
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
    source = random_weights(MetaFormer(name, fork_feat=False))
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
    reference = random_weights(timm.create_model(name))
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


@pytest.mark.parametrize('family', ['convformer', 'caformer'])
def test_a_head_of_imagenet_21k_is_left_out_with_a_note(family, tmp_path):
    reference = random_weights(timm.create_model(f'{family}_s18', num_classes=21841))
    torch.save(official_baseline(reference), tmp_path / f'{family}_s18_in21k.pth')
    del reference
    model = MetaFormer(f'{family}_s18')
    report = load_pretrained(model, str(tmp_path / f'{family}_s18_in21k.pth'))
    assert (report.arch, report.loaded) == (f'{family}_s18', len(model.state_dict()) - 8)
    assert report.notes['left out'].startswith('norm head1 head_norm head2 (expected')


# Where the official network has the position embeddings, as entries of their own.
@pytest.mark.parametrize('name, entry', [('metaformer_pppa_s12', 6), ('metaformer_ppaa_s12', 4)])
def test_official_files_of_the_hybrids_load(name, entry, tmp_path):
    source = random_weights(MetaFormer(name, fork_feat=False))
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


@pytest.mark.parametrize('name', ['metaformer_ppff_s12', 'caformer_s18', 'randformer_s12'])
def test_own_files_load(name, tmp_path):
    source = random_weights(MetaFormer(name))
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    model = MetaFormer(name)
    load_pretrained(model, str(tmp_path / 'own.pth'))
    assert_same_tensors(model, source)


@pytest.mark.parametrize(
    'build',
    [
        lambda: MetaFormer(TINY_HEADS, token_mixers=Depthwise),
        lambda: tiny_metaformer('caformer_s18', out_indices=(3,)),
        lambda: PoolFormer(TINY_HEADS, out_indices=(3,)),
    ],
    ids=['mixer of ones own', 'last norm alone', 'last norm of a PoolFormer alone'],
)
def test_own_files_of_unusual_backbones_load(build, tmp_path):
    source, model = random_weights(build()), build()
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


def test_weights_without_mixers_are_refused(tmp_path):
    torch.save(MetaFormer('metaformer_id_s12').state_dict(), tmp_path / 'own.pth')
    with pytest.raises(CheckpointError, match=r'lacks \d+ tensors: .*\. It is s12'):
        load_pretrained(MetaFormer('metaformer_ppaa_s12'), str(tmp_path / 'own.pth'))


def test_norms_of_the_outputs_have_no_name_in_other_layouts(file_of):
    state = PoolFormer(TINY).state_dict()
    _, converted = convert(str(file_of(state)), 'timm')
    own = [key for key in state if not re.match(r'norm\d\.', key)]
    assert len(converted) == len(own) < len(state)


@pytest.mark.parametrize(
    'build, layout',
    [
        (lambda: PoolFormer(TINY, out_indices=(3,)), 'mmpretrain'),
        (lambda: tiny_metaformer('poolformerv2_s12', out_indices=(3,)), 'official'),
        (lambda: PoolFormer(TINY), 'official'),
    ],
    ids=['mmpretrain', 'family', 'detector'],
)
def test_a_lone_norm_is_mmpretrains_where_it_has_the_model(build, layout):
    assert find_weights(build().state_dict(), '').layout == layout


@pytest.mark.parametrize(
    'palette, are',
    [
        ([(0, 0, 255)], True),
        ([(0, 0, 256)], False),
        ([(0, -1, 0)], False),
        ([(0, 0)], False),
        ([(0, 0, 0.5)], False),
        ('red', False),
    ],
)
def test_colours_are_three_bytes(palette, are):
    assert are_colours(palette) is are
