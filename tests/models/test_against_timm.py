"""Features against timm's independent implementation, with its weights."""

import re

import pytest
import timm
import torch
from helpers import (
    assert_same_features,
    random_weights,
    timm_to_official,
)
from torch import nn

from mmpoolformer import (
    MetaFormer,
    PoolFormer,
)
from mmpoolformer.archs import BASELINES
from mmpoolformer.checkpoints import load_pretrained


@pytest.fixture(scope='module')
def timm_models():
    models = {}

    def get(arch):
        if arch not in models:
            models[arch] = random_weights(timm.create_model(f'poolformer_{arch}'))
        return models[arch]

    return get


@pytest.mark.parametrize('token_mixing', ['fused', 'plain'])
@pytest.mark.parametrize('size', [(64, 64), (75, 101)], ids=str)
def test_features(arch, size, token_mixing, timm_models):
    reference = timm_models(arch)
    model = PoolFormer(arch, token_mixing=token_mixing).eval()
    weights = {timm_to_official(key): value for key, value in reference.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert {key.split('.')[0] for key in missing} == {'norm0', 'norm2', 'norm4', 'norm6'}
    assert {key.split('.')[0] for key in unexpected} == {'norm', 'head'}

    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference.forward_intermediates(image, intermediates_only=True)
        actual = model(image)
    for stage, (ours, theirs) in enumerate(zip(actual, expected)):
        theirs = torch.nn.functional.group_norm(theirs, 1)  # our output norms start as identity
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=f'stage {stage}')


def test_logits(arch, timm_models):
    reference = timm_models(arch)
    model = PoolFormer(arch, fork_feat=False, token_mixing='fused').eval()
    model.load_state_dict(
        {timm_to_official(key): value for key, value in reference.state_dict().items()}
    )
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # timm averages before its norm over channels; the official code normalises the whole map
        # first, as one group. The plain definition, on timm's features and with its weights:
        features, norm = reference.forward_features(image), reference.head.norm
        normalised = torch.nn.functional.group_norm(features, 1, norm.weight, norm.bias)
        expected = reference.head.fc(normalised.mean((-2, -1)))
        torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)


IN_TIMM = [name for name in BASELINES if name in timm.list_models()]


@pytest.mark.parametrize('size', [(64, 96), (81, 63)], ids=['even', 'odd'])
@pytest.mark.parametrize(
    'name',
    ['poolformerv2_s12', 'poolformerv2_s24', 'convformer_s18', 'convformer_s36', 'caformer_s18',
     'caformer_s36'],
)  # fmt: skip
def test_features_equal_timms_with_weights_from_a_timm_file(name, size, tmp_path):
    reference = random_weights(timm.create_model(name))
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
    torch.save(random_weights(reference).state_dict(), tmp_path / 'timm.pth')
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
