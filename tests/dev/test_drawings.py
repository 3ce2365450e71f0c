"""The drawings of the docs: made anew they say the same, and what they count is so."""

import re

import pytest
import torch
from helpers import ROOT, load_tool

from mmpoolformer import PoolFormer

TEXT = re.compile(r'<text[^>]*>([^<]+)</text>')


@pytest.fixture(scope='module')
def drawings():
    return load_tool('drawings')


@pytest.mark.parametrize('name', ['pyramid', 'block', 'pooling', 'kept'])
def test_a_drawing_is_what_the_code_draws(name, drawings, tmp_path):
    drawings['save'](drawings['DRAWINGS'][name](), tmp_path / 'new.svg')
    kept = (ROOT / 'docs' / 'images' / f'{name}.svg').read_text()
    assert TEXT.findall(kept) and TEXT.findall(kept) == TEXT.findall(
        (tmp_path / 'new.svg').read_text()
    )
    assert f'images/{name}.svg' in (ROOT / 'docs' / 'how-it-works.md').read_text()


def kept_maps(token_mixing, with_cp, layers):
    """Floats per position and channel that the blocks of one stage keep for the backward."""
    arch = dict(layers=(layers, 1, 1, 1), embed_dims=(16, 16, 16, 16))
    model = PoolFormer(arch, out_indices=(0,), with_cp=with_cp, token_mixing=token_mixing).train()
    storages = {}

    def keep(tensor):
        if tensor.numel() >= 16 * 16 * 16:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 3, 64, 64, requires_grad=True))
    return sum(tensor.numel() for tensor in storages.values()) / (16 * 16 * 16)


@pytest.mark.parametrize('mode', ['plain', 'fused', 'fused, with_cp'])
def test_the_maps_that_are_drawn_are_those_that_are_kept(mode, drawings):
    options = mode.split(',')[0], 'with_cp' in mode
    one_block = kept_maps(*options, layers=3) - kept_maps(*options, layers=2)
    assert one_block == sum(channels for _, channels, _ in drawings['KEPT'][mode])
