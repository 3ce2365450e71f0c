"""``tools/convert_checkpoint.py``, ``inspect_checkpoint.py`` and ``publish_model.py``."""

import hashlib

import pytest
import torch
from helpers import (
    TINY,
    random_weights,
    run_tool,
    tool_error,
)
from safetensors.torch import load_file
from tiny_files import LAYOUTS, hf_model, timm_model, tiny_file_contents

from mmpoolformer import PoolFormer


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
    source = file_of(random_weights(PoolFormer(TINY, fork_feat=False)).state_dict())
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
