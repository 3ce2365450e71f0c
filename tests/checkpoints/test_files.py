"""What is in a file: read as data, or refused with a reason."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers import (
    TINY,
    random_weights,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file, save_file
from tiny_files import LAYOUTS, OUT_NORMS, Malicious, pretrained, tiny_file_contents

from mmpoolformer import CheckpointError, PoolFormer
from mmpoolformer.checkpoints import (
    load_pretrained,
    read_checkpoint,
)

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
    with pytest.raises(CheckpointError, match='lists in lists without end'):
        pretrained(file_of(contents))


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

    model = random_weights(PoolFormer(TINY))
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
