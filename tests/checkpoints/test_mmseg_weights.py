"""The trained models that mmseg links: what its own config builds loads into ours, every tensor.

The backbone in mmseg's configs is mmpretrain's. Where that cannot be imported, its names are
written down here, apart from the package.
"""

import functools
import http.server
import importlib
import json
import threading

import pytest
import torch
from helpers import CONFIGS, random_weights, run_tool, train_options
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmpoolformer.adapt.zoo import find_config

# Blocks per stage and channels, by the name in mmseg's files.
BLOCKS = {
    's12': ((2, 2, 6, 2), (64, 128, 320, 512)),
    's24': ((4, 4, 12, 4), (64, 128, 320, 512)),
    's36': ((6, 6, 18, 6), (64, 128, 320, 512)),
    'm36': ((6, 6, 18, 6), (96, 192, 384, 768)),
    'm48': ((8, 8, 24, 8), (96, 192, 384, 768)),
}
THEIRS = {
    arch: f'mmseg::poolformer/fpn_poolformer_{arch}_8xb4-40k_ade20k-512x512.py' for arch in BLOCKS
}
THEIRS['s36'] = 'mmseg::poolformer/fpn_poolformer_s36_8x4_512x512_40k_ade20k.py'

by_arch = pytest.mark.parametrize('arch', BLOCKS)


class MmpretrainBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(4 * dim, dim, 1)
        self.layer_scale_1 = nn.Parameter(torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(torch.ones(dim))


@MODELS.register_module()
class MmpretrainNames(nn.Module):
    """What mmpretrain's PoolFormer calls its tensors; it computes nothing."""

    def __init__(self, arch, out_indices, **_):
        super().__init__()
        blocks, dims = BLOCKS[arch]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dims[0], 7)
        self.network = nn.ModuleList()
        for stage in range(4):
            if stage:
                self.network.append(nn.Module())
                self.network[-1].proj = nn.Conv2d(dims[stage - 1], dims[stage], 3)
            stack = [MmpretrainBlock(dims[stage]) for _ in range(blocks[stage])]
            self.network.append(nn.Sequential(*stack))
        for index in out_indices:
            self.add_module(f'norm{index}', nn.GroupNorm(1, dims[index // 2]))


def ours(arch):
    return CONFIGS / 'segmentation' / f'sem-fpn_poolformer-{arch}_8xb4-40k_ade20k-512x512.py'


def build(path, device, backbone=None):
    cfg = Config.fromfile(path, import_custom_modules=False)
    init_default_scope('mmseg')
    cfg.model.backbone.update(init_cfg=None, **dict(type=backbone) if backbone else {})
    with torch.device(device):
        return MODELS.build(cfg.model)


@by_arch
def test_every_tensor_has_its_place(arch):
    trained = build(find_config(THEIRS[arch]), 'meta', backbone='mmengine.MmpretrainNames')
    build(ours(arch), 'meta').load_state_dict(trained.state_dict(), strict=True)


@pytest.fixture
def mmpretrain():
    try:
        return importlib.import_module('mmpretrain.models')
    except Exception as error:  # beside transformers 5 a TypeError
        pytest.skip(f'mmpretrain cannot be imported: {error}')


@by_arch
def test_the_names_are_those_of_mmpretrain(arch, mmpretrain):
    trained = build(find_config(THEIRS[arch]), 'meta')
    named = build(find_config(THEIRS[arch]), 'meta', backbone='mmengine.MmpretrainNames')
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (trained, named)]
    assert shapes[0] == shapes[1]
    # «Not freezing any parameters», says its docstring of its default, 0.
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    assert frozen == {'backbone.patch_embed.proj.weight', 'backbone.patch_embed.proj.bias'}


def test_the_scores_are_those_of_mmpretrain(image, mmpretrain):
    trained = random_weights(build(find_config(THEIRS['s12']), 'cpu'))
    model = build(ours('s12'), 'cpu').eval()
    model.load_state_dict(trained.state_dict(), strict=True)
    metas = [dict(img_shape=torch.Size(image.shape[2:]))] * len(image)
    with torch.no_grad():
        scores, expected = (m.encode_decode(image, metas) for m in (model, trained))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_trained_model_is_tested_by_its_url(ade_root, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    trained = build(find_config(THEIRS['s12']), 'cpu', backbone='mmengine.MmpretrainNames')
    meta = dict(mmseg_version='0.24.1', CLASSES=('wall',), PALETTE=[[120, 120, 120]], iter=40000)
    contents = dict(meta=meta, state_dict=random_weights(trained).state_dict())
    torch.save(contents, tmp_path / 'fpn_poolformer_s12-b5aa2f49.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/fpn_poolformer_s12-b5aa2f49.pth'
        options = train_options(ours('s12'), ade_root)
        run_tool('test', ours('s12'), url, '--work-dir', tmp_path / 'work', *options)
        server.shutdown()
    assert 'mIoU' in json.loads((tmp_path / 'work' / 'test_metrics.json').read_text())
