"""What is counted of a model, against sums by hand and published numbers."""

import pytest
import torch
from helpers import TINY, tiny_metaformer
from torch import nn

from mmpoolformer import ARCHS, PoolFormer
from mmpoolformer.engine.complexity import PeakMemory, measure, plain

# Multiply-accumulates at 224×224 in the official repository's README.
PUBLISHED = {'s12': 1.8e9, 's24': 3.4e9, 's36': 5.0e9, 'm36': 8.8e9, 'm48': 11.6e9}


def count(model, side=64):
    return measure(model.eval(), torch.randn(1, 3, side, side))


@pytest.mark.parametrize('arch', ARCHS)
def test_macs_are_the_published_ones(arch):
    with torch.device('meta'):
        model = PoolFormer(arch, fork_feat=False).eval()
        result = measure(model, torch.empty(1, 3, 224, 224))
    # Two digits are published.
    assert result.macs['whole'] == pytest.approx(PUBLISHED[arch], rel=0.02)


def test_a_convolution_and_a_linear_layer_are_counted_as_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.Flatten(), nn.Linear(512, 5))
    result = measure(model.eval(), torch.randn(1, 3, 8, 8))
    assert result.macs['whole'] == 8 * 8 * 8 * 3 * 9 + 512 * 5
    assert result.parameters['whole'] == 8 * 27 + 8 + 512 * 5 + 5


@pytest.mark.parametrize('deployed', [False, True])
def test_fused_blocks_count_as_the_plain_definition(deployed, monkeypatch):
    counts = []
    for token_mixing in ('plain', 'fused', 'auto'):
        model = PoolFormer(TINY, token_mixing=token_mixing).eval()
        if deployed:
            model.switch_to_deploy()
        counts.append(count(model).macs['whole'])
        assert model.token_mixing == token_mixing
    assert len(set(counts)) == 1


def test_the_operations_of_fused_blocks_are_seen_by_the_counter(monkeypatch):
    model = PoolFormer(TINY, token_mixing='fused').eval()
    expected = count(model).macs
    monkeypatch.setattr('mmpoolformer.engine.complexity.plain', lambda model: torch.no_grad())
    assert count(model).macs == expected


def test_the_plain_definition_ends_with_its_block():
    model = PoolFormer(TINY, token_mixing='fused')
    with pytest.raises(KeyError), plain(model):
        assert model.token_mixing == 'plain'
        raise KeyError
    assert model.token_mixing == 'fused'


def test_attention_is_counted():
    model = tiny_metaformer('caformer_s18').eval()
    attention = model.stages[2][1][0].token_mixer
    tokens, dim = 16, 64
    projections = tokens * dim * (3 * dim + dim)
    result = measure(attention, torch.randn(1, dim, 4, 4))
    assert result.macs['whole'] == projections + 2 * tokens * tokens * dim


def test_multi_head_attention_is_counted_in_one_kernel_and_in_several():
    module = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    tokens = torch.randn(1, 10, 32)

    class SelfAttention(nn.Module):
        def __init__(self, need_weights):
            super().__init__()
            self.inner, self.need_weights = module, need_weights

        def forward(self, x):
            return self.inner(x, x, x, need_weights=self.need_weights)[0]

    expected = 10 * 32 * (4 * 32 + 2 * 10)
    for need_weights in (False, True):
        assert measure(SelfAttention(need_weights), tokens).macs['whole'] == expected


def test_peak_memory_is_what_lives_at_one_time():
    x = torch.zeros(256, 1024)  # one MiB
    with PeakMemory() as memory:
        memory.add(x)
        y = x + 1
        y.add_(1)  # no memory of its own
        z = y[:, :10].t()  # a view
        del y, z
        x + 2
    assert memory.peak == 2 * x.nbytes


def test_memory_is_that_of_the_model_as_it_runs():
    image = torch.randn(1, 3, 256, 256)
    peaks = {}
    for token_mixing in ('plain', 'fused'):
        model = PoolFormer('s12', token_mixing=token_mixing).eval()
        peaks[token_mixing] = measure(model, image).peak_bytes
    assert peaks['fused'] != peaks['plain']
    assert all(peak > image.nbytes for peak in peaks.values())


def test_weights_are_parameters_and_buffers():
    model = nn.Sequential(nn.BatchNorm2d(4))
    assert measure(model.eval(), torch.randn(1, 4, 2, 2)).weight_bytes == 4 * 4 * 4 + 8


def test_a_model_whose_heads_need_labels_is_counted_without_them():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 9, 1)

        def forward(self, images, data_samples=None, mode='tensor'):
            raise TypeError('boxes are missing')

    result = count(Detector(), side=8)
    assert result.macs['whole'] == 8 * 8 * 3 * 4
    assert result.reason == 'TypeError: boxes are missing'


def test_parameters_are_trained_as_before():
    model = PoolFormer(TINY, frozen_stages=1)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    count(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert len(set(trained)) == 2
