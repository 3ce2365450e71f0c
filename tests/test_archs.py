"""The fields of an architecture, one by one: checked, and heeded by the model."""

import pytest
import torch

from mmpoolformer import ARCHS, METAFORMERS, Arch, MetaFormer
from mmpoolformer.archs import FIELDS, official_weights, resolve_arch

SAIL = 'https://github.com/sail-sg/poolformer/releases/download/v1.0'
SAIL_DL = 'https://huggingface.co/sail/dl/resolve/main'
TINY = dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))


def randomised(fields):
    model = MetaFormer(dict(TINY, **fields)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.05 * noise if parameter.ndim > 1 else 0.5 + 0.1 * noise
    return model


@pytest.mark.parametrize(
    'name, value', [('s12', 1e-5), ('s24', 1e-5), ('s36', 1e-6), ('m36', 1e-6), ('m48', 1e-6)]
)
def test_layer_scale_starts_as_in_the_paper(name, value):
    assert ARCHS[name].layer_scale_init_value == value


def test_every_field_is_checked():
    assert set(FIELDS) == set(Arch._fields)
    assert all(resolve_arch(arch) is arch for arch in METAFORMERS.values())


@pytest.mark.parametrize(
    'fields, words',
    [
        (dict(act='relu'), ["act']='relu'", 'star_relu']),
        (dict(norm='layer'), ["norm']='layer'", 'channel']),
        (dict(norm_eps=0), ['norm_eps', 'positive']),
        (dict(has_classifier=1), ['has_classifier', 'True or False']),
        (dict(res_scale_init_values=(1, 1)), ['res_scale_init_values', '4']),
        (dict(layer_scale_init_value=None), ['None', 'res_scale_init_values']),
        (dict(layers=(1, 0, 1, 1)), ['layers', '(1, 0, 1, 1)', 'positive']),
        (
            dict(baseline=True),
            ["unknown fields ['baseline']", 'act', 'res_scale_init_values', 'downsample_norm'],
        ),
    ],
)
def test_bad_values_are_refused(fields, words):
    with pytest.raises(ValueError) as error:
        resolve_arch(dict(TINY, **fields))
    assert all(word in str(error.value) for word in words), error.value


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match=r"missing fields \['embed_dims'\]"):
        resolve_arch(dict(layers=(1, 1, 1, 1)))


def test_both_tables_are_looked_up_by_name():
    assert all(
        resolve_arch(name) is arch for table in (ARCHS, METAFORMERS) for name, arch in table.items()
    )


@pytest.mark.parametrize(
    'fields, present, absent',
    [
        (dict(act='star_relu'), 'network.0.0.mlp.act.scale', None),
        (dict(mlp_bias=False), None, 'network.0.0.mlp.fc1.bias'),
        (dict(norm_bias=False), 'norm0.bias', 'network.0.0.norm1.bias'),
        (dict(downsample_norm=True), 'network.1.norm.weight', None),
        (
            dict(layer_scale_init_value=None, res_scale_init_values=(None, 1.0, 1.0, 1.0)),
            'network.2.0.res_scale_1',
            'network.0.0.layer_scale_1',
        ),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, dict) else None,
)
def test_each_field_works_by_itself(fields, present, absent):
    """Fused, plain and folded it computes the same."""
    model = randomised(fields)
    keys = set(model.state_dict())
    assert present is None or present in keys
    assert absent not in keys
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.token_mixing = 'plain'
        expected = model(image)
        model.token_mixing = 'auto'
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
        model.switch_to_deploy()
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)


def test_eps_of_blocks_and_outputs():
    model = MetaFormer(dict(TINY, norm_eps=1e-3, out_norm_eps=1e-4))
    assert model.blocks[0].norm2.eps == 1e-3 and model.out_norm(3).eps == 1e-4


@pytest.mark.parametrize(
    ('name', 'variant', 'url'),
    [
        ('s12', '', f'{SAIL}/poolformer_s12.pth.tar'),
        ('poolformer_m48', '', f'{SAIL}/poolformer_m48.pth.tar'),
        ('metaformer_id_s12', '', f'{SAIL}/metaformer_id_s12.pth.tar'),
        ('metaformer_ppaa_s12', '', f'{SAIL}/metaformer_ppaa_s12_224.pth.tar'),
        ('identityformer_s12', '', f'{SAIL_DL}/identityformer/identityformer_s12.pth'),
        ('caformer_s18', '384_in21ft1k', f'{SAIL_DL}/caformer/caformer_s18_384_in21ft1k.pth'),
    ],
)
def test_published_weights_have_the_names_of_the_official_repositories(name, variant, url):
    assert official_weights(name, variant) == url
