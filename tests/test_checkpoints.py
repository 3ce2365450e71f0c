"""Weights of every layout and source: loaded completely, or refused with a reason."""

import functools
import hashlib
import http.server
import logging
import math
import re
import struct
import threading
import zipfile

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import CONFIGS, ROOT, run_tool, timm_to_official, tool_error, train_options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file, save_file
from timm.models import metaformer
from timm.models._manipulate import adapt_input_conv

from mmpoolformer import ARCHS, CheckpointError, PoolFormer
from mmpoolformer.checkpoints import (
    convert,
    find_weights,
    inspect,
    load_pretrained,
    read_checkpoint,
    register_loaders,
)

TINY = dict(layers=(1, 2, 1, 1), embed_dims=(8, 16, 24, 32))
OUT_NORMS = {f'norm{i}.{kind}' for i in (0, 2, 4, 6) for kind in ('weight', 'bias')}


def randomise(model):
    """Weights with which every part matters and deep models stay finite."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1 if 'layer_scale' in name else 1.0
        parameter.data = scale * (1 + 0.1 * noise) if parameter.ndim == 1 else 0.05 * noise
    return model.eval()


def timm_model(arch):
    if arch == TINY:
        return randomise(
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
    return randomise(timm.create_model(f'poolformer_{arch}'))


def hf_model(arch):
    layers, dims = TINY.values() if arch == TINY else ARCHS[arch][:2]
    config = transformers.PoolFormerConfig(
        depths=list(layers), hidden_sizes=list(dims), num_labels=1000
    )
    return randomise(transformers.PoolFormerForImageClassification(config))


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


# --- the README's table ------------------------------------------------------------------------

LAYOUTS = ['official', 'mmpretrain', 'timm', 'hf']
CONTAINERS = {
    'bare': lambda weights: weights,
    'state_dict': lambda weights: {'state_dict': weights, 'meta': {'epoch': 1}},
    'model': lambda weights: {'model': weights, 'epoch': 1},
    'module.': lambda weights: {'state_dict': {f'module.{k}': v for k, v in weights.items()}},
    'backbone.': lambda weights: {'state_dict': {f'backbone.{k}': v for k, v in weights.items()}},
}


def assert_loaded(model):
    expected = tiny_file_contents('official')
    for key, value in model.state_dict().items():
        if key in OUT_NORMS:
            assert (value == (1 if key.endswith('weight') else 0)).all()
        else:
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


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


def test_readme_table_lists_what_is_tested_here():
    table = (ROOT / 'README.md').read_text().split('### Weights')[1]
    for layout in LAYOUTS:
        (row,) = [line for line in table.splitlines() if line.startswith(f'| `{layout}`')]
        assert row.count('works') == 3
    for word in ('.safetensors', '.pth.tar', 'timm://', 'hf://', 'https://', '`module.`'):
        assert word in table


def test_mmengine_reads_the_new_sources_too(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'), 'cpu')
    assert torch.equal(loaded['a'], torch.ones(2))
    with pytest.raises(CheckpointError, match='timm://nothing'):
        CheckpointLoader.load_checkpoint('timm://nothing')


# --- what the report says ----------------------------------------------------------------------


@pytest.fixture
def file_of(tmp_path):
    def save(contents):
        torch.save(contents, tmp_path / 'weights.pth')
        return tmp_path / 'weights.pth'

    return save


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


@pytest.fixture
def log():
    """What mmengine's logger is given."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append((record.levelname, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


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
    source = randomise(PoolFormer(TINY))
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
    source = randomise(PoolFormer(TINY, out_indices=(0, 1)))
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
    model = randomise(PoolFormer(TINY))
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


class Malicious:
    def __reduce__(self):
        return (print, ('EXECUTED',))


BAD_FILES = {
    'web page': (b'\n<!DOCTYPE html><html>Not found</html>', 'web page'),
    'empty': (b'', 'is empty'),
    'text': (b'hello world', 'no checkpoint'),
    'lfs': (b'version https://git-lfs.github.com/spec/v1\noid', 'Git LFS'),
    'zip': (b'PK\x03\x04' + b'\0' * 100, 'no checkpoint'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_files_that_are_no_checkpoints(case, tmp_path):
    content, word = BAD_FILES[case]
    (tmp_path / 'weights.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=word):
        pretrained(tmp_path / 'weights.pth')


@pytest.mark.parametrize('source', ['gone.pth', '/', 's3://bucket/file.pth'])
def test_sources_that_cannot_be_read(source):
    with pytest.raises(CheckpointError, match=re.escape(source)):
        pretrained(source)


def test_code_in_a_file_is_refused_unless_asked_for(file_of, capfd, log):
    path = file_of(dict(state_dict=tiny_file_contents('official'), evil=Malicious()))
    with pytest.raises(CheckpointError, match=r'executes code.*allow_pickle=True'):
        pretrained(path)
    assert 'EXECUTED' not in capfd.readouterr().out
    load_pretrained(PoolFormer(TINY), path, allow_pickle=True)
    assert 'EXECUTED' in capfd.readouterr().out
    assert any(level == 'WARNING' and 'EXECUTING the code' in text for level, text in log)


GETATTR = b'cbuiltins\ngetattr\n'


def string(text):
    return b'X' + struct.pack('<I', len(text)) + text.encode()


def getattr_of(owner, name):
    return GETATTR + owner + string(name) + b'\x86R'


# exec, out of builtins, as the state setter of a history.
EXEC = getattr_of(getattr_of(GETATTR, '__self__'), 'exec')
HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81'
PICKLES = {
    'getattr': b'\x80\x02'
    + HISTORY
    + b'}'
    + string('__setstate__')
    + EXEC
    + b'sb'
    + string("open('executed', 'w')")
    + b'b.',
    'os.system': b'\x80\x02cposix\nsystem\n' + string('touch executed') + b'\x85R.',
    'method': b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer.mean\n)R.',
}


@pytest.mark.parametrize('payload', PICKLES)
def test_pickles_that_reach_for_code_are_refused(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile('weights.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', PICKLES[payload])
        archive.writestr('archive/version', '3\n')
    with pytest.raises(CheckpointError, match='executes code'):
        pretrained('weights.pth')
    assert not (tmp_path / 'executed').exists()


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'script.pth'))
    with pytest.raises(CheckpointError, match='TorchScript'):
        pretrained(tmp_path / 'script.pth')


def test_training_history_is_read_as_it_was(file_of):
    history = HistoryBuffer([1.0, 2.0, 4.0], [1, 1, 2])
    checkpoint = read_checkpoint(file_of(dict(hub=history, scalar=np.float64(3))))
    assert type(checkpoint['hub']) is HistoryBuffer and checkpoint['scalar'] == 3
    assert checkpoint['hub'].mean() == history.mean()
    assert checkpoint['hub'].statistics('max') == 4


def test_a_flipped_bit_in_the_data_is_noticed(file_of):
    path = file_of(tiny_file_contents('official'))
    content = bytearray(path.read_bytes())
    position = content.index(tiny_file_contents('official')['head.weight'].numpy().tobytes()[:64])
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='wrong checksum'):
        pretrained(path)


def test_wrappers_around_themselves_end(file_of):
    contents = {}
    contents['state_dict'] = contents
    with pytest.raises(CheckpointError, match='no plain tensors'):
        pretrained(file_of(contents))


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


# --- fuzzing -----------------------------------------------------------------------------------


def damage(data, contents):
    """Draw one way of damaging the entries of a state dict."""
    contents = dict(contents)
    key = data.draw(st.sampled_from(sorted(contents)))
    kind = data.draw(st.sampled_from(['drop', 'rename', 'reshape', 'non-tensor', 'none']))
    if kind == 'drop':
        del contents[key]
    elif kind == 'rename':
        contents[data.draw(st.text(max_size=20)) + key] = contents.pop(key)
    elif kind == 'reshape':
        contents[key] = contents[key].reshape(-1)[: data.draw(st.integers(0, 9))].clone()
    elif kind == 'non-tensor':
        contents[key] = data.draw(st.none() | st.integers() | st.text() | st.lists(st.integers()))
    return contents


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_load_completely_or_raise_the_documented_error(data, tmp_path_factory):
    layout = data.draw(st.sampled_from(LAYOUTS))
    contents = damage(data, tiny_file_contents(layout))
    path = tmp_path_factory.getbasetemp() / 'fuzz.pth'
    tensors_only = all(isinstance(value, torch.Tensor) for value in contents.values())
    if tensors_only and data.draw(st.booleans()):
        save_file({k: v.contiguous() for k, v in contents.items()}, path)
    else:
        torch.save(contents, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)

    model = randomise(PoolFormer(TINY))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        load_pretrained(model, path)
    except CheckpointError:
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        return
    # What the file holds now, read without this package, under the names this file started with.
    stored = (
        load_file(path) if path.read_bytes()[8:9] == b'{' else torch.load(path, weights_only=True)
    )
    names = dict(zip(tiny_file_contents('official'), tiny_file_contents(layout)))
    if layout == 'hf':
        return  # its keys come in another order; that it is complete is checked above
    for key, value in model.state_dict().items():
        if key in OUT_NORMS:
            assert torch.equal(value, before[key])
        else:
            assert torch.equal(value, stored[names[key]])


# --- whole models as mmdet 2.19 and mmseg 0.19 wrote them --------------------------------------


def numbered(template, count):
    return [template.format(i) for i in range(count)]


FPN = {n: [*numbered('neck.lateral_convs.{}.conv', n)] for n in (3, 4)}
WHOLE_MODELS = {
    'retinanet_poolformer-s12_fpn_1x_coco': [
        *FPN[3],
        *numbered('neck.fpn_convs.{}.conv', 5),
        *numbered('bbox_head.cls_convs.{}.conv', 4),
        *numbered('bbox_head.reg_convs.{}.conv', 4),
        'bbox_head.retina_cls',
        'bbox_head.retina_reg',
    ],
    'mask-rcnn_poolformer-s12_fpn_1x_coco': [
        *FPN[4],
        *numbered('neck.fpn_convs.{}.conv', 4),
        *('rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg'),
        *('roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'),
        *numbered('roi_head.bbox_head.shared_fcs.{}', 2),
        *numbered('roi_head.mask_head.convs.{}.conv', 4),
        *('roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits'),
    ],
    'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512': [
        *FPN[4],
        *numbered('neck.fpn_convs.{}.conv', 4),
        'decode_head.conv_seg',
        *[
            f'decode_head.scale_heads.{i}'
            for i in ('0.0', '1.0', '2.0', '2.2', '3.0', '3.2', '3.4')
        ],
    ],
}


def config_path(name):
    return next(CONFIGS.glob(f'*/{name}.py'))


@functools.cache
def old_file(name):
    """The keys that the old toolbox wrote for a model, with tensors of the right shapes."""
    cfg = Config.fromfile(config_path(name))
    init_default_scope(cfg.default_scope)
    model = randomise(MODELS.build(cfg.model))
    layers = WHOLE_MODELS[name]
    keys = set()
    for layer in layers:
        if 'scale_heads' in layer:
            bn = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
            keys |= {f'{layer}.conv.weight', *(f'{layer}.bn.{part}' for part in bn)}
        else:
            keys |= {f'{layer}.weight', f'{layer}.bias'}
    with torch.device('meta'):
        keys |= {f'backbone.{key}' for key in PoolFormer('s12').state_dict()}
    if name.startswith('retinanet'):
        keys -= {'backbone.norm0.weight', 'backbone.norm0.bias'}
    assert keys == set(model.state_dict())
    meta = dict(mmdet_version='2.19.0', CLASSES=('a', 'b'), epoch=12, config='model = dict()')
    return dict(meta=meta, state_dict=model.state_dict(), optimizer=dict(state={}))


@pytest.mark.parametrize('name', WHOLE_MODELS)
def test_old_whole_models_load_through_the_test_launcher(
    name, coco_root, ade_root, tmp_path, capsys
):
    contents = old_file(name)
    path, config = tmp_path / 'old.pth', config_path(name)
    options = train_options(config, coco_root if config.parent.name == 'detection' else ade_root)
    torch.save(contents, path)
    run_tool('test', config, path, '--work-dir', tmp_path, *options)
    assert (tmp_path / 'test_metrics.json').is_file()

    lost = WHOLE_MODELS[name][-1] + (
        '.conv.weight' if 'scale' in WHOLE_MODELS[name][-1] else '.bias'
    )
    fewer = {k: v for k, v in contents['state_dict'].items() if k != lost}
    torch.save(dict(contents, state_dict=fewer), path)
    message = tool_error(capsys, 'test', config, path, '--work-dir', tmp_path, *options)
    assert 'does not fit the model' in message and lost in message


@pytest.mark.parametrize('layout', LAYOUTS)
def test_load_from_classification_weights_reaches_the_backbone(layout, file_of):
    register_loaders(replace=True)
    loaded = CheckpointLoader.load_checkpoint(str(file_of(tiny_file_contents(layout))), 'cpu')
    expected = {f'backbone.{k}' for k in PoolFormer(TINY).state_dict() if k not in OUT_NORMS}
    assert expected <= loaded['state_dict'].keys()


@pytest.mark.parametrize(
    'contents, words',
    [
        ({'conv1.weight': torch.ones(1)}, 'no tensor of the checkpoint fits'),
        ({'decode_head.conv_seg.bias': torch.full((150,), math.nan)}, 'NaN or Inf in decode_head'),
        ([1, 2], 'holds list'),
    ],
)
def test_load_from_a_checkpoint_of_which_nothing_fits(
    contents, words, file_of, ade_root, tmp_path, capsys
):
    config = config_path('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    options = [*train_options(config, ade_root), f'load_from={file_of(contents)}']
    assert words in tool_error(capsys, 'train', config, '--work-dir', tmp_path, *options)


def test_launchers_refuse_code_in_checkpoints(tmp_path, capsys, ade_root):
    config = config_path('sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512')
    torch.save(dict(state_dict={}, evil=Malicious()), tmp_path / 'evil.pth')
    options = train_options(config, ade_root)
    args = [config, tmp_path / 'evil.pth', '--work-dir', tmp_path, *options]
    message = tool_error(capsys, 'test', *args)
    assert 'executes code' in message and '--allow-pickle' in message
    assert 'EXECUTED' not in capsys.readouterr().out


# --- tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize('target', [*LAYOUTS, 'safetensors'])
def test_convert_there_and_back(target, file_of, tmp_path, capsys):
    source = file_of(tiny_file_contents('official'))
    there = tmp_path / ('there.safetensors' if target == 'safetensors' else 'there.pth')
    back = tmp_path / 'back.safetensors'
    run_tool('convert_checkpoint', source, there, '--to', target)
    run_tool('convert_checkpoint', there, back, '--to', 'official')
    expected, actual = tiny_file_contents('official'), load_file(back)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    if target in ('timm', 'mmpretrain'):
        assert torch.load(there, weights_only=True).keys() == tiny_file_contents(target).keys()
    if target == 'hf':
        assert torch.load(there, weights_only=True).keys() == hf_model(TINY).state_dict().keys()
    assert tool_error(capsys, 'convert_checkpoint', source, back, '--to', 'timm').count('exists')


def test_converted_files_load_in_timm(file_of, tmp_path):
    source = file_of(randomise(PoolFormer(TINY, fork_feat=False)).state_dict())
    run_tool('convert_checkpoint', source, tmp_path / 'timm.pth', '--to', 'timm')
    model = timm_model(TINY)
    model.load_state_dict(torch.load(tmp_path / 'timm.pth', weights_only=True))


def test_convert_says_what_it_leaves_out(file_of, tmp_path, capsys):
    source = file_of(dict(PoolFormer(TINY).state_dict(), **{'neck.weight': torch.ones(1)}))
    run_tool('convert_checkpoint', source, tmp_path / 'timm.pth', '--to', 'timm')
    out = capsys.readouterr().out
    assert 'norm0.weight' in out and 'neck.weight' in out


def test_inspect(file_of, capsys):
    run_tool('inspect_checkpoint', file_of(tiny_file_contents('timm')))
    out = capsys.readouterr().out
    assert 'layout     timm' in out and 'layers=(1, 2, 1, 1)' in out and 'head.norm' in out
    (file_of({}).parent / 'page.pth').write_text('<html>')
    message = tool_error(capsys, 'inspect_checkpoint', file_of({}).parent / 'page.pth')
    assert message.startswith('error: ') and 'web page' in message


def test_publish_leaves_its_source_alone(file_of):
    source = file_of(dict(state_dict={'a': torch.ones(2)}, optimizer={}))
    before = source.read_bytes()
    run_tool('publish_model', source, source)
    assert source.read_bytes() == before and len(list(source.parent.glob('weights-*.pth'))) == 1


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'publish_model'])
def test_a_missing_folder_is_named(tool, file_of, tmp_path, capsys):
    source = file_of(tiny_file_contents('official'))
    args = ['--to', 'timm'] if tool == 'convert_checkpoint' else []
    message = tool_error(capsys, tool, source, tmp_path / 'gone' / 'a.pth', *args)
    assert 'gone' in message and 'cannot be written' in message


@pytest.mark.parametrize('ema', [None, 'ema_state_dict', 'state_dict_ema', 'model_ema'])
def test_publish(ema, file_of, tmp_path, capsys):
    weights, other = {'a': torch.ones(2)}, {'a': torch.zeros(2)}
    contents = dict(state_dict=weights, optimizer=dict(lr=1), message_hub={}, meta=dict(epoch=1))
    if ema:
        contents[ema] = other
    run_tool('publish_model', file_of(contents), tmp_path / 'model.pth')
    (published,) = tmp_path.glob('model-????????.pth')
    kept = torch.load(published, weights_only=True)
    assert kept.keys() == {'state_dict', 'meta'}
    assert torch.equal(
        kept['state_dict']['a'], (other if ema in ('state_dict_ema', 'model_ema') else weights)['a']
    )
    assert ('EMA' in capsys.readouterr().out) == bool(ema)
    assert published.stem.endswith(hashlib.sha256(published.read_bytes()).hexdigest()[:8])
