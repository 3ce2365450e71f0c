"""Features against timm's independent implementation, weights mapped by name."""

import pytest
import timm
import torch
from conftest import timm_to_official

from mmpoolformer import PoolFormer


@pytest.fixture(scope='module')
def timm_models():
    models = {}

    def get(arch):
        if arch not in models:
            model = timm.create_model(f'poolformer_{arch}', pretrained=False).eval()
            generator = torch.Generator().manual_seed(0)
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                # Each branch at a visible strength; depth must not make the features explode.
                scale = 0.1 if 'layer_scale' in name else 1.0
                parameter.data = scale * (1 + 0.1 * noise) if parameter.ndim == 1 else 0.05 * noise
            models[arch] = model
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
