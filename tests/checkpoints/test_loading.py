"""Weights of every layout and source: loaded completely, or refused with a reason."""

import math

import pytest
import torch
from helpers import (
    ROOT,
    TINY,
    random_weights,
)
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv
from tiny_files import (
    LAYOUTS,
    OUT_NORMS,
    assert_loaded,
    features,
    hf_model,
    pretrained,
    timm_model,
    tiny_file_contents,
)

from mmpoolformer import CheckpointError, PoolFormer
from mmpoolformer.checkpoints import (
    convert,
    find_weights,
    inspect,
    load_pretrained,
)

# --- every architecture, from timm and from Hugging Face ---------------------------------------


@pytest.mark.parametrize('source', ['timm', 'hf'])
def test_features_are_those_of_the_source(arch, source, tmp_path):
    reference = timm_model(arch) if source == 'timm' else hf_model(arch)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if source == 'timm':
            expected = reference.forward_intermediates(image, intermediates_only=True)
        else:
            expected = reference.poolformer(image, output_hidden_states=True).hidden_states
    path = tmp_path / 'source.safetensors'
    state_dict = {key: value.contiguous() for key, value in reference.state_dict().items()}
    save_file(state_dict, path)
    for ours, theirs in zip(features(pretrained(path, arch), image), expected, strict=True):
        # Output norms are at their initial value, the identity.
        theirs = torch.nn.functional.group_norm(theirs, 1)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    weights, official = convert(path, 'official')
    assert (weights.layout, weights.arch_name) == (source, arch)
    back = find_weights(official).to(source)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], state_dict[key]) for key in back)


CONTAINERS = {
    'bare': lambda weights: weights,
    'state_dict': lambda weights: {'state_dict': weights, 'meta': {'epoch': 1}},
    'model': lambda weights: {'model': weights, 'epoch': 1},
    'module.': lambda weights: {'state_dict': {f'module.{k}': v for k, v in weights.items()}},
    'backbone.': lambda weights: {'state_dict': {f'backbone.{k}': v for k, v in weights.items()}},
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.bin'])
def test_torch_files(layout, container, suffix, tmp_path):
    path = tmp_path / f'weights{suffix}'
    torch.save(CONTAINERS[container](tiny_file_contents(layout)), path)
    model = pretrained(path)
    if layout == 'hf':  # its random weights are others
        reference = hf_model(TINY).poolformer
        expected = reference.encoder.patch_embeddings[0].projection.weight
        torch.testing.assert_close(model.patch_embed.proj.weight, expected)
    else:
        assert_loaded(model)
    assert inspect(path).layout == layout


@pytest.mark.parametrize('layout', LAYOUTS)
def test_safetensors_files(layout, tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_file({k: v.contiguous() for k, v in tiny_file_contents(layout).items()}, path)
    pretrained(path)
    assert inspect(path).layout == layout


def test_backbone_of_hugging_face_without_its_classifier(tmp_path):
    torch.save(hf_model(TINY).poolformer.state_dict(), tmp_path / 'a.bin')
    assert inspect(tmp_path / 'a.bin').layout == 'hf'
    pretrained(tmp_path / 'a.bin')


def test_the_guide_lists_what_is_tested_here():
    table = (ROOT / 'docs' / 'guides' / 'checkpoints.md').read_text()
    for layout in LAYOUTS:
        (row,) = [line for line in table.splitlines() if line.startswith(f'| `{layout}`')]
        assert row.count('works') == 3
    for word in ('.safetensors', '.pth.tar', 'timm://', 'hf://', 'https://', '`module.`'):
        assert word in table


def test_prefix_of_configs_made_for_mmpretrain(file_of):
    path = file_of(dict(state_dict=tiny_file_contents('mmpretrain')))
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    model = PoolFormer(TINY, init_cfg=init_cfg)
    model.init_weights()
    assert_loaded(model)
    with pytest.raises(CheckpointError, match=r"behind 'encoder\.'"):
        load_pretrained(model, path, prefix='encoder.')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_report_of_classification_weights(layout, file_of):
    report = load_pretrained(PoolFormer(TINY), file_of(tiny_file_contents(layout)))
    assert report.layout == layout
    assert report.loaded == len(PoolFormer(TINY).state_dict()) - len(OUT_NORMS)
    assert report.notes['initial'].startswith('norm0 norm2 norm4 norm6 (expected')
    assert report.notes['left out'].startswith('norm head (expected')
    assert ('classification norm under the name' in str(report)) == (layout == 'mmpretrain')


def test_report_is_logged_once(file_of, log):
    pretrained(file_of(tiny_file_contents('timm')))
    (report,) = [text for _, text in log if text.startswith('pretrained weights from')]
    assert 'layout     timm' in report and 'loaded     ' in report


def test_classifier_takes_norm_and_head(file_of):
    for layout in LAYOUTS:
        model = pretrained(file_of(tiny_file_contents(layout)), fork_feat=False)
        assert torch.equal(
            model.head.weight, find_weights(tiny_file_contents(layout)).to('timm')['head.fc.weight']
        )


def test_head_of_other_classes_stays_initial(file_of):
    model = PoolFormer(TINY, fork_feat=False, num_classes=5)
    report = load_pretrained(model, file_of(tiny_file_contents('official')))
    assert report.notes['initial'].startswith('head ')


def test_out_norms_of_a_detector_are_loaded(file_of):
    source = random_weights(PoolFormer(TINY))
    contents = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    contents['neck.lateral_convs.0.conv.weight'] = torch.zeros(1)
    model = PoolFormer(TINY)
    report = load_pretrained(model, file_of(dict(state_dict=contents)))
    assert 'initial' not in report.notes and 'neck.lateral_convs.0.conv' in report.notes['others']
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_stages_that_are_not_built_are_left_out(file_of):
    model = PoolFormer(TINY, out_indices=(1,))
    report = load_pretrained(model, file_of(tiny_file_contents('timm')))
    assert 'network.4.0.mlp.fc1' in report.notes['left out'] or 'network.3' in str(report)
    assert torch.equal(
        model.patch_embed.proj.weight, tiny_file_contents('timm')['stem.conv.weight']
    )


def test_file_of_a_backbone_without_its_last_stages(file_of):
    source = random_weights(PoolFormer(TINY, out_indices=(0, 1)))
    path = file_of(source.state_dict())
    model = PoolFormer(TINY, out_indices=(0, 1))
    load_pretrained(model, path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())
    with pytest.raises(CheckpointError, match=r'layers=\(1, 2, 0, 0\)'):
        load_pretrained(PoolFormer(TINY), path)


@pytest.mark.parametrize('in_channels', [1, 2, 4, 6, 7])
def test_stem_is_adapted_as_timm_does(in_channels, file_of):
    contents = tiny_file_contents('official')
    model = PoolFormer(TINY, in_channels=in_channels)
    report = load_pretrained(model, file_of(contents))
    expected = adapt_input_conv(in_channels, contents['patch_embed.proj.weight'])
    torch.testing.assert_close(model.patch_embed.proj.weight.data, expected)
    assert f'from 3 to {in_channels} input channels' in report.notes['adapted']


def test_half_precision_files(file_of):
    contents = {k: v.half() for k, v in tiny_file_contents('official').items()}
    model = pretrained(file_of(contents))
    assert model.patch_embed.proj.weight.dtype == torch.float32


# --- errors, never silence ---------------------------------------------------------------------


def changed(**changes):
    contents = dict(tiny_file_contents('official'))
    for key, value in changes.items():
        contents[key.replace('__', '.')] = value
    return contents


def without(start):
    return {k: v for k, v in tiny_file_contents('official').items() if not k.startswith(start)}


FC1 = 'network.2.1.mlp.fc1.weight'
HALF_A_NORM = {'norm0__weight': torch.ones(8)}
for stage, channels in ((1, 16), (2, 24), (3, 32)):
    HALF_A_NORM[f'norm{2 * stage}__weight'] = torch.ones(channels)
    HALF_A_NORM[f'norm{2 * stage}__bias'] = torch.zeros(channels)

BAD_CONTENTS = {
    'sparse': (changed(patch_embed__proj__bias=torch.ones(8).to_sparse()), ['no plain tensors']),
    'meta': (changed(patch_embed__proj__bias=torch.ones(8, device='meta')), ['no plain tensors']),
    'complex': (changed(patch_embed__proj__bias=torch.ones(8).cfloat()), ['complex64', 'float32']),
    'overflow': (
        changed(patch_embed__proj__bias=torch.full((8,), 1e300, dtype=torch.float64)),
        ['Inf'],
    ),
    'batch norm': (
        changed(network__0__0__norm1__running_mean=torch.ones(8)),
        ['tensors that a PoolFormer does not have', 'network.0.0.norm1.running_mean'],
    ),
    'other mixer': (
        changed(network__0__0__token_mixer__qkv__weight=torch.ones(8)),
        ['tensors that a PoolFormer does not have', 'network.0.0.token_mixer.qkv.weight'],
    ),
    'half a norm': (
        changed(**HALF_A_NORM),
        ['lacks 1', 'norm0'],
    ),
    'two models': (
        {
            f'{who}.{key}': value
            for who in ('student', 'teacher')
            for key, value in changed().items()
        },
        ['several PoolFormers', "'student.'", "'teacher.'", 'prefix='],
    ),
    'another timm net': ({'stem.conv.weight': torch.ones(8, 3, 7, 7)}, ['lacks', 'stages.0']),
    'no tensor matches': ({'conv1.weight': torch.ones(1)}, ['no tensor of a PoolFormer', 'conv1']),
    'not a dict': ([1, 2], ['list', 'state dict']),
    'nothing': ({}, ['state dict']),
    'missing': (without('network.0.0.norm1.weight'), ['lacks 1', 'network.0.0.norm1']),
    'missing stem': (without('patch_embed.proj.weight'), ['lacks 1', 'patch_embed.proj']),
    'shape': (
        changed(network__0__0__norm1__weight=torch.ones(9)),
        ['network.0.0.norm1.weight is (9,) in the file and (8,) in the model'],
    ),
    'nan': (changed(patch_embed__proj__bias=torch.full((8,), math.nan)), ['NaN', 'patch_embed']),
    'inf': (changed(patch_embed__proj__bias=torch.full((8,), math.inf)), ['Inf', 'patch_embed']),
    'integers': (changed(patch_embed__proj__bias=torch.ones(8).int()), ['int32', 'patch_embed']),
    'no tensor': (
        changed(patch_embed__proj__bias='x'),
        ['no plain tensors', 'patch_embed.proj.bias'],
    ),
    'other arch': (
        {
            k: v
            for k, v in tiny_file_contents('official').items()
            if not k.startswith('network.2.1')
        },
        ['layers=(1, 1, 1, 1)', 'layers=(1, 2, 1, 1)', 'set arch=dict('],
    ),
}


@pytest.mark.parametrize('case', BAD_CONTENTS)
def test_contents_that_do_not_fit(case, file_of):
    contents, words = BAD_CONTENTS[case]
    path = file_of(contents)
    model = random_weights(PoolFormer(TINY))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, path)
    assert str(path) in str(error.value)
    assert all(word in str(error.value) for word in words), error.value
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_arch_to_set_is_named(file_of):
    with torch.device('meta'):
        contents = PoolFormer('s24').state_dict()
    contents = {k: torch.zeros(v.shape) for k, v in contents.items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(PoolFormer('s12'), file_of(contents))
    assert "the file is s24, the backbone is s12: set arch='s24'" in str(error.value)


def test_a_failed_load_changes_nothing_and_can_be_repeated(file_of):
    normal = dict(type='Normal', layer='Conv2d', std=1.0)
    gone = dict(type='Pretrained', checkpoint='gone.pth')
    model = PoolFormer(TINY, init_cfg=[normal, gone])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r'gone\.pth'):
            model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.init_cfg == [normal, gone]
