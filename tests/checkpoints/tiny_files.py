"""A tiny classifier as each source writes it."""

import functools
import re

import timm
import torch
import transformers
from helpers import (
    TINY,
    random_weights,
    timm_to_official,
)
from timm.models import metaformer

from mmpoolformer import ARCHS, PoolFormer

OUT_NORMS = {f'norm{i}.{kind}' for i in (0, 2, 4, 6) for kind in ('weight', 'bias')}


def timm_model(arch):
    if arch == TINY:
        return random_weights(
            metaformer.MetaFormer(
                depths=TINY['layers'],
                dims=TINY['embed_dims'],
                downsample_norm=None,
                mlp_act=torch.nn.GELU,
                mlp_bias=True,
                norm_layers=metaformer.GroupNorm1,
                layer_scale_init_values=1e-5,
                res_scale_init_values=None,
                use_mlp_head=False,
            )
        )
    return random_weights(timm.create_model(f'poolformer_{arch}'))


def hf_model(arch):
    layers, dims = TINY.values() if arch == TINY else ARCHS[arch][:2]
    config = transformers.PoolFormerConfig(
        depths=list(layers), hidden_sizes=list(dims), num_labels=1000
    )
    return random_weights(transformers.PoolFormerForImageClassification(config))


@functools.cache
def tiny_file_contents(layout):
    """A tiny classifier's state dict as each source writes it."""
    if layout == 'timm':
        return timm_model(TINY).state_dict()
    if layout == 'hf':
        return hf_model(TINY).state_dict()
    named = {timm_to_official(key): value for key, value in timm_model(TINY).state_dict().items()}
    if layout == 'mmpretrain':
        renames = (r'^norm\.', 'norm6.'), (r'^(patch_embed|network|norm6)', r'backbone.\1')
        for pattern, replacement in (*renames, (r'^head\.', 'head.fc.')):
            named = {re.sub(pattern, replacement, key): value for key, value in named.items()}
    return named


def features(model, image):
    with torch.no_grad():
        return model(image)


def pretrained(checkpoint, arch=TINY, **kwargs):
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    model = PoolFormer(arch, init_cfg=init_cfg, **kwargs)
    model.init_weights()
    return model.eval()


LAYOUTS = ['official', 'mmpretrain', 'timm', 'hf']


class Malicious:
    def __reduce__(self):
        return (print, ('EXECUTED',))


def assert_loaded(model):
    expected = tiny_file_contents('official')
    for key, value in model.state_dict().items():
        if key in OUT_NORMS:
            assert (value == (1 if key.endswith('weight') else 0)).all()
        else:
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
