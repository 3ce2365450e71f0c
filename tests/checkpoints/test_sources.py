"""Checkpoints from URLs, hubs and libraries."""

import functools
import http.server
import re
import threading

import pytest
import timm
import torch
from helpers import TINY
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from tiny_files import assert_loaded, hf_model, pretrained, timm_model, tiny_file_contents

from mmpoolformer import CheckpointError
from mmpoolformer.checkpoints import read_state_dict


def test_url(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(tiny_file_contents('official'), tmp_path / 'poolformer_tiny.pth.tar')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/poolformer_tiny.pth.tar'
        assert_loaded(pretrained(url))
        server.shutdown()
    assert_loaded(pretrained(url))  # from mmengine's and torch's cache
    with pytest.raises(CheckpointError, match='cannot be downloaded'):
        pretrained(url.replace('tiny', 'gone'))


@pytest.mark.parametrize('file', ['model.safetensors', 'model_00080000.safetensors'])
def test_two_files_of_one_name_are_two(file, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for name, value in (('a', 1.0), ('b', 2.0)):
        (tmp_path / name).mkdir()
        save_file({'x': torch.full((2,), value)}, tmp_path / name / file)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f'http://127.0.0.1:{server.server_port}'
        for name, value in (('a', 1.0), ('b', 2.0)):
            weights = read_state_dict(f'{root}/{name}/{file}')
            assert torch.equal(weights['x'], torch.full((2,), value))
        server.shutdown()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hugging Face's local cache, from which its library reads without a network."""
    cache = tmp_path / 'hub'

    def add(repository, **files):
        root = cache / f'models--{repository.replace("/", "--")}'
        (root / 'refs').mkdir(parents=True)
        (root / 'refs' / 'main').write_text('0' * 40)
        snapshot = root / 'snapshots' / ('0' * 40)
        snapshot.mkdir(parents=True)
        return snapshot

    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(cache))
    monkeypatch.setenv('HF_HUB_CACHE', str(cache))
    return add


def test_hf_scheme(hub):
    weights = {k: v.contiguous() for k, v in hf_model(TINY).state_dict().items()}
    save_file(weights, hub('sail/poolformer_tiny') / 'model.safetensors')
    model = pretrained('hf://sail/poolformer_tiny')
    expected = weights['poolformer.encoder.patch_embeddings.0.projection.weight']
    assert torch.equal(model.patch_embed.proj.weight, expected)
    with pytest.raises(CheckpointError, match='hf://sail/gone cannot be fetched'):
        pretrained('hf://sail/gone')


def test_timm_scheme(hub):
    reference = timm_model('s12')
    repository = timm.models.get_pretrained_cfg('poolformer_s12').hf_hub_id
    weights = {k: v.contiguous() for k, v in reference.state_dict().items()}
    save_file(weights, hub(repository) / 'model.safetensors')
    model = pretrained('timm://poolformer_s12', 's12')
    assert torch.equal(model.patch_embed.proj.weight, weights['stem.conv.weight'])
    with pytest.raises(CheckpointError, match='timm://poolformer_s99 cannot be fetched'):
        pretrained('timm://poolformer_s99')


def test_mmengine_reads_the_new_sources_too(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'), 'cpu')
    assert torch.equal(loaded['state_dict']['a'], torch.ones(2))  # where EMAHook looks
    with pytest.raises(CheckpointError, match='timm://nothing'):
        CheckpointLoader.load_checkpoint('timm://nothing')


@pytest.mark.parametrize('source', ['gone.pth', '/', 's3://bucket/file.pth'])
def test_sources_that_cannot_be_read(source):
    with pytest.raises(CheckpointError, match=re.escape(source)):
        pretrained(source)


@pytest.mark.parametrize('source', ['~nobody-here/a.pth', 'a\0.pth', 'http://[x', 'http://a b:c/d'])
def test_ill_formed_sources(source):
    with pytest.raises(CheckpointError):
        pretrained(source)


@pytest.mark.parametrize('library', ['timm', 'huggingface_hub'])
def test_a_missing_library_is_named(library, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, library, None)
    source = 'timm://poolformer_s12' if library == 'timm' else 'hf://sail/poolformer_s12'
    with pytest.raises(CheckpointError, match=f'pip install -U {library}'):
        pretrained(source)
