"""Checkpoints made to harm: refused in one message, without a call, a signal or a flood."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections import Counter

import hostile_checkpoints as hostile
import numpy as np
import pytest
import torch
from helpers import ROOT, run_tool, tool_error, write_tiny_config
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import OPTIMIZERS
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmpoolformer.checkpoints import (
    CheckpointError,
    convert,
    inspect,
    read_checkpoint,
    read_state_dict,
    register_loaders,
)
from mmpoolformer.checkpoints.pickles import FREE, PER_BYTE
from mmpoolformer.engine.checkpointing import is_intact, newest_intact_checkpoint
from mmpoolformer.engine.resuming import random_state, set_random_state
from mmpoolformer.engine.start import AUTO, find_start
from mmpoolformer.utils.errors import LaunchError

HOSTILE = dict(hostile.hostile_files())
HEAVY = dict(hostile.heavy_payloads())
# What reads states unchecked; on the CPU from torch 2.4 on.
try:
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    FUSED = ('optim_wrapper.optimizer.fused=True',)
except RuntimeError:
    FUSED = ()
SCHEDULES = """
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-4, by_epoch=False, end=8),
    dict(type='MultiStepLR', by_epoch=False, milestones=[3, 6]),
]
"""


def run_program(*arguments):
    """Run ``hostile_checkpoints.py``; its lines of JSON."""
    run = subprocess.run(
        [sys.executable, hostile.__file__, *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{')]


@pytest.fixture(scope='module')
def ends(tmp_path_factory):
    """How the process that read each file ended, and its words."""
    folder = tmp_path_factory.mktemp('hostile')
    paths = {name: folder / f'{number}.pth' for number, name in enumerate(HOSTILE)}
    for name, path in paths.items():
        path.write_bytes(HOSTILE[name])
    rows = {row['path']: (row['code'], row['words']) for row in run_program(*paths.values())}
    return {name: rows[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_file_is_refused(name, ends):
    assert ends[name][0] == hostile.REFUSED, ends[name]


@pytest.mark.parametrize(
    'name, word',
    [
        ('os.system', 'asks for posix.system'),
        ('subprocess', 'asks for subprocess.getoutput'),
        ('ndarray O plain', 'numpy.dtype of'),
        ('state of a tensor', 'sets the state of Tensor'),
        ('escapes in a key', r'\x1b]0;owned'),
        ('stride of 0', 'in a storage of 4 numbers'),
        ('storage larger than the file', 'larger than the file'),
        ('compressed', 'is compressed'),
    ],
)
def test_the_refusal_says_what_it_met(name, word, ends):
    assert word in ends[name][1]
    assert '\x1b' not in ends[name][1]


@pytest.mark.parametrize('name', HEAVY)
def test_a_pickle_takes_memory_in_proportion(name, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(hostile.file_of(HEAVY[name]))
    (weighed,) = run_program('--memory', path)
    assert weighed['bytes'] <= PER_BYTE * len(HEAVY[name]) + FREE, weighed


@pytest.fixture(scope='module')
def work_dir(digits_root, tmp_path_factory):
    """A real training, with its checkpoints."""
    folder = tmp_path_factory.mktemp('run')
    config = write_tiny_config(folder, 'by_iteration', digits_root, iters=4)
    config.write_text(config.read_text() + SCHEDULES)
    run_tool('train', config, '--work-dir', folder / 'work')
    return folder


def fuzz(work_dir, count, seed):
    checkpoint = work_dir / 'work' / 'iter_4.pth'
    small = work_dir / 'small.pth'
    contents = torch.load(checkpoint, weights_only=False)
    contents['state_dict'] = {'a': torch.ones(2), 'b': torch.ones(3).half()}
    contents['optimizer'] = {'state': {0: {'step': torch.ones(())}}, 'param_groups': [{'lr': 0.1}]}
    contents['ema_state_dict'] = {}
    contents['array'], contents['scalar'] = np.arange(3), np.float32(1)
    torch.save(contents, small)
    return run_program('--fuzz', count, seed, small)[-1]


def test_mutated_checkpoints_are_read_or_refused(work_dir):
    ends = fuzz(work_dir, 1000, seed=0)
    assert 'failed' not in ends, ends
    assert ends['read'] + ends['refused'] == 1000 and min(ends.values()) > 10


@pytest.mark.long
def test_many_mutated_checkpoints_are_read_or_refused(work_dir):
    ends = fuzz(work_dir, 20_000, seed=1)
    print(ends)
    assert 'failed' not in ends, ends
    assert ends['read'] + ends['refused'] == 20_000


# --- what is no file of weights, or more than it seems ------------------------------------------


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'iter_3.pth')
    with pytest.raises(CheckpointError, match='a pipe'):
        read_checkpoint(tmp_path / 'iter_3.pth')
    assert not is_intact(tmp_path / 'iter_3.pth')


def test_a_device_is_refused():
    with pytest.raises(CheckpointError, match='a device'):
        read_checkpoint('/dev/zero')


def test_the_format_is_told_by_the_content(tmp_path):
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    assert torch.equal(read_checkpoint(tmp_path / 'a.safetensors')['a'], torch.ones(2))


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    large = torch.ones(2**16)
    torch.save({f'w{number}': large for number in range(3000)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='the same numbers again and again'):
        read_state_dict(tmp_path / 'a.pth')


def test_tied_weights_stay_tied(tmp_path):
    tied = torch.arange(6.0)
    torch.save({'a': tied, 'b': tied, 'c': tied[2:4]}, tmp_path / 'a.pth')
    weights = read_state_dict(tmp_path / 'a.pth')
    assert weights['a'].data_ptr() == weights['b'].data_ptr() == weights['c'].data_ptr() - 8
    assert torch.equal(weights['c'], torch.tensor([2.0, 3.0]))


def test_what_is_read_can_be_written_to(tmp_path):
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_checkpoint(tmp_path / 'a.pth')['a'].add_(1)


@pytest.mark.parametrize(
    'contents, word',
    [
        ({1: torch.ones(2), 'a': torch.ones(2)}, 'no plain tensors: 1'),
        ({'a': torch.ones(2).cfloat()}, 'complex'),
    ],
)
def test_publish_names_what_no_weights_are(contents, word, tmp_path, capsys):
    torch.save({'state_dict': contents, 2: 'x'}, tmp_path / 'a.pth')
    assert word in tool_error(capsys, 'publish_model', tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert list(tmp_path.glob('*b*')) == []


def test_publish_takes_other_keys_than_names(tmp_path, capsys):
    torch.save({'state_dict': {'a': torch.ones(2)}, 2: 'x', 'y': 1}, tmp_path / 'a.pth')
    run_tool('publish_model', tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert 'dropped: 2 y' in capsys.readouterr().out


def test_many_small_tensors_are_read(tmp_path):
    contents = {str(number): torch.tensor(float(number)) for number in range(20_000)}
    torch.save(contents, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert len(found) == 20_000 and found['19999'] == 19_999


@pytest.mark.parametrize('header', ['type', 'axes', 'key'])
def test_hostile_headers_of_safetensors(header, tmp_path):
    entry = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
    entry.update(
        {'type': dict(dtype='\x1b]0;owned\x07'), 'axes': dict(shape=[1] * 10**5)}.get(header, {})
    )
    text = json.dumps({'\x1b[2J' if header == 'key' else 'a': entry}).encode()
    (tmp_path / 'a.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + bytes(4))
    with pytest.raises(CheckpointError) as error:
        read_state_dict(tmp_path / 'a.safetensors')
    assert '\x1b' not in str(error.value)


def test_weights_of_eight_bits_are_refused(tmp_path):
    save_file({'a': torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match="no plain tensors: 'a'"):
        read_state_dict(tmp_path / 'a.safetensors')


@pytest.mark.parametrize('count', [50, 50_000])
def test_many_position_embeddings_are_refused(count, tmp_path):
    keys = {f'network.{number}.pos_embed': torch.ones(1) for number in range(count)}
    torch.save(keys, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError):
        inspect(tmp_path / 'a.pth')


def test_many_kinds_of_mixers_are_refused(tmp_path):
    keys = {f'network.0.0.token_mixer.{number}': torch.ones(1) for number in range(5000)}
    torch.save(keys, tmp_path / 'a.pth')
    for reader in (inspect, lambda path: convert(path, 'official')):
        with pytest.raises(CheckpointError, match='5000 kinds of tensors'):
            reader(tmp_path / 'a.pth')


def versions(changed):
    """A state dict with versions, of which those of '' are changed through the memo afterwards."""
    made = hostile.call(hostile.global_('collections', 'OrderedDict'))
    own = b'}q\x05' + hostile.string('version') + b'K\x02s'
    own += hostile.string('assign_to_params_buffers') + b'K\x01s'
    metadata = b'}' + hostile.string('') + own + b's' + hostile.string('n') + b'}'
    metadata += hostile.string('version') + hostile.string('2') + b'ss'
    return made + hostile.dict_(_metadata=metadata) + b'b' + b'h\x05' + changed + b'\x86'


@pytest.mark.parametrize(
    'changed',
    [
        hostile.string('version') + hostile.list_(hostile.tensor()) + b's',
        b'(' + b''.join(hostile.integer(number) + b'N' for number in range(10_000)) + b'u',
    ],
    ids=['tensors', 'many'],
)
def test_of_modules_their_versions_alone_are_read(changed, tmp_path):
    (tmp_path / 'a.pth').write_bytes(hostile.file_of(versions(changed)))
    state_dict, _ = read_checkpoint(tmp_path / 'a.pth')
    assert state_dict._metadata == {'': {'version': 2}}


def test_two_records_of_one_name_are_refused(tmp_path):
    torch.save({'a': torch.ones(4)}, tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth', 'a') as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        name = next(name for name in archive.namelist() if name.endswith('/data/0'))
        archive.writestr(name, bytes(16))
    with pytest.raises(CheckpointError, match='two records of one name'):
        read_checkpoint(tmp_path / 'a.pth')
    assert not is_intact(tmp_path / 'a.pth')


# --- what real files hold ----------------------------------------------------------------------


@pytest.mark.parametrize('old_format', [False, True])
def test_what_training_saves_is_read_as_it_was(old_format, work_dir, tmp_path):
    expected = torch.load(work_dir / 'work' / 'iter_4.pth', weights_only=False)
    torch.save(expected, tmp_path / 'a.pth', _use_new_zipfile_serialization=not old_format)
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found['state_dict']._metadata == expected['state_dict']._metadata
    assert (
        found['message_hub']['log_scalars'].keys() == expected['message_hub']['log_scalars'].keys()
    )
    for name, history in expected['message_hub'].pop('log_scalars').items():
        own = found['message_hub']['log_scalars'][name]
        assert type(own) is HistoryBuffer
        assert all(map(np.array_equal, own.data, history.data))
        assert own.statistics('mean', 2) == history.statistics('mean', 2)
    del found['message_hub']['log_scalars']
    assert_equal(found, expected)


def assert_equal(found, expected):
    assert type(found) is type(expected) or isinstance(expected, torch.nn.Parameter)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for own, other in zip(found, expected):
            assert_equal(own, other)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        np.testing.assert_equal(found, expected)


@pytest.mark.parametrize(
    'array',
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 2), np.float32),
        np.array([True, False]),
        np.float64(3.5),
        np.int32(-1),
    ],
)
def test_numbers_of_numpy(array, tmp_path):
    torch.save(array, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_numbers_in_another_order_of_bytes_are_refused(tmp_path):
    torch.save(np.arange(3, dtype='>f8'), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='another order'):
        read_checkpoint(tmp_path / 'a.pth')


def test_scalars_and_containers(tmp_path):
    contents = dict(
        size=torch.Size([1, 2]), type=torch.bfloat16, device=torch.device('cuda', 1),
        bytes=b'a\xff', large=2**100, set={1, 2}, empty=torch.zeros(0, 3), tuple=(1, None, True),
        parameter=torch.nn.Parameter(torch.ones(2)), milestones=Counter([3]),
    )  # fmt: skip
    torch.save(contents, tmp_path / 'a.pth')
    assert_equal(read_checkpoint(tmp_path / 'a.pth'), contents)


# --- what resuming does with it ----------------------------------------------------------------


@pytest.fixture
def resume(work_dir, tmp_path):
    """Change a checkpoint of the run, and resume from it."""

    def resume_from(change, *options):
        contents = torch.load(work_dir / 'work' / 'iter_4.pth', weights_only=False)
        change(contents)
        torch.save(contents, tmp_path / 'changed.pth')
        run_tool(
            'train', work_dir / 'tiny.py', '--work-dir', tmp_path / 'work', '--resume',
            tmp_path / 'changed.pth', '--cfg-options', 'train_cfg.max_iters=8', *options,
        )  # fmt: skip

    return resume_from


def test_the_config_in_a_checkpoint_is_not_executed(resume, tmp_path):
    def add_config(contents):
        contents['meta']['config'] = f"open({str(tmp_path / 'executed')!r}, 'w')"

    resume(add_config)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('name', ['precious.txt', 'best_precious.pth'])
def test_a_checkpoint_cannot_have_files_removed(name, resume, tmp_path):
    precious = tmp_path / name
    precious.write_text('')

    def point_there(contents):
        info = contents['message_hub']['runtime_info']
        info.update(best_ckpt=str(precious), best_score=-1.0)
        info['keep_ckpt_ids'] = [f'../../{name}', *range(5)]

    resume(point_there)
    assert precious.exists()


def shrink_states(contents):
    for group in contents['optimizer']['param_groups']:
        group.update(fused=True, foreach=False)
    for state in contents['optimizer']['state'].values():
        state.update(exp_avg=torch.zeros(1), exp_avg_sq=torch.zeros(1))


def nested():
    lists = [1.0]
    for _ in range(60):
        lists = [lists] * 10
    return lists


def set_state(**values):
    return lambda contents: contents['optimizer']['state'][0].update(values)


def set_group(**values):
    return lambda contents: contents['optimizer']['param_groups'][0].update(values)


def set_meta(**values):
    return lambda contents: contents['meta'].update(values)


def set_info(**values):
    return lambda contents: contents['message_hub']['runtime_info'].update(values)


def set_scheduler(**values):
    return lambda contents: contents['param_schedulers'][0].update(values)


def permute(contents):
    for group in contents['optimizer']['param_groups']:
        group['params'].reverse()


def rename(contents):
    optimizer = contents['optimizer']
    states = {number + 1000: state for number, state in optimizer['state'].items()}
    optimizer['state'] = states


def repeat_a_parameter(contents):
    params = contents['optimizer']['param_groups'][0]['params']
    params[1] = params[0]


def laughs(text='lol', depth=7):
    for _ in range(depth):
        text = [text] * 10
    return text


def become_sgd(contents):
    for group in contents['optimizer']['param_groups']:
        del group['betas'], group['eps']
        group.update(momentum=0.9, dampening=0, nesterov=False)
    for state in contents['optimizer']['state'].values():
        moment = state['exp_avg']
        state.clear()
        state['momentum_buffer'] = moment


def widen(contents):
    name, value = next(iter(contents['state_dict'].items()))
    contents['state_dict'][name] = torch.cat([value, value])


def spoil_average(contents):
    averaged = contents['ema_state_dict']
    name = next(name for name in averaged if name.endswith('weight'))
    averaged[name] = torch.full_like(averaged[name], float('nan'))


RESUMED = {
    'states of other parameters': (permute, 'does not count its parameters in their order'),
    'states of no parameter': (rename, 'a state of no parameter'),
    'a parameter twice': (repeat_a_parameter, 'does not count its parameters'),
    'a state without numbers': (
        lambda contents: contents['optimizer']['state'][0].pop('exp_avg'),
        'a state without exp_avg',
    ),
    'a state of nothing': (set_state(exp_avg=None), 'a state without exp_avg'),
    'a state as text': (set_state(exp_avg='x'), "exp_avg='x'"),
    'tensors in the meta': (set_meta(dataset_meta=[torch.ones(3)]), 'its meta has tensors'),
    'meta that is none': (lambda contents: contents.update(meta=[1]), 'it has no meta'),
    'a seed without end': (set_meta(seed=laughs()), 'lists in lists without end'),
    'a seed of lists': (set_meta(seed=[[1]]), 'its meta.seed is list'),
    **{
        f'many names in {part}': (
            lambda contents, part=part: contents['message_hub'][part].update(
                {f'n{number}': True for number in range(6000)}
            ),
            part,
        )
        for part in ('resumed_keys', 'runtime_info', 'log_scalars')
    },
    'states of other shapes': (shrink_states, 'exp_avg of shape (1,)'),
    'a state without axes': (set_state(exp_avg=torch.zeros(())), 'exp_avg of shape ()'),
    'a state of integers': (set_state(exp_avg=torch.zeros(3).int()), 'exp_avg of shape (3,)'),
    'a state that is a list': (set_state(exp_avg=[1.0]), 'exp_avg of type list'),
    'a state without end': (set_state(exp_avg=nested()), 'lists in lists without end'),
    'a step of several numbers': (set_state(step=torch.ones(3)), 'step that no run reaches'),
    'a step that is a name': (set_state(step='1'), 'step that no run reaches'),
    'a rate that is no number': (set_group(lr='1'), "lr='1', not a number"),
    'a rate that is infinite': (set_group(lr=float('inf')), 'lr=inf, not a number'),
    'decays that are none': (set_group(betas=(3, 0.999)), 'betas=(3.0, 0.999)'),
    'decays of another number': (set_group(betas=(0.9,)), 'betas=tuple'),
    'another optimizer': (
        lambda contents: contents['optimizer']['param_groups'][0]['params'].pop(),
        'parameters, the config',
    ),
    'information without end': (set_info(note=nested()), 'lists in lists without end'),
    'a best checkpoint without end': (set_info(best_ckpt=nested()), 'without end'),
    'generators without end': (
        lambda contents: contents['random_state'].update(python=nested()),
        'lists in lists without end',
    ),
    'many checkpoints': (set_info(keep_ckpt_ids=[0] * 10**5), 'keep_ckpt_ids'),
    'a best score that is none': (set_info(best_score=torch.ones(2)), 'best_score is Tensor'),
    'an iteration as text': (set_meta(iter='\x1b]0;owned'), r"meta.iter is '\x1b]0;owned'"),
    'an iteration beyond all': (set_meta(iter=10**17), 'which no run reaches'),
    'an iteration before all': (set_meta(iter=-5), 'meta.iter is -5'),
    'an iteration beyond the end': (set_meta(iter=10**12), 'the config trains up to 8'),
    'no optimizer': (lambda contents: contents.pop('optimizer'), 'it has no optimizer'),
    'no schedulers': (lambda contents: contents.pop('param_schedulers'), 'no param_schedulers'),
    'an optimizer of another kind': (
        become_sgd,
        'has momentum, dampening, which AdamW of the config has not',
    ),
    'another model': (widen, 'it is of another model'),
    'a part of a model': (
        lambda contents: contents['state_dict'].popitem(last=False),
        'it is of another model',
    ),
    'averaged weights that are none': (spoil_average, 'NaN or Inf in module.'),
    'a seed that is none': (set_meta(seed=10**30), 'meta.seed'),
    'weights alone': (lambda contents: contents.pop('meta'), 'it has no meta'),
    'a scheduler that is none': (set_scheduler(last_step='x'), "last_step='x'"),
    'another hub': (lambda contents: contents['message_hub'].clear(), 'no log_scalars'),
    'generators that are none': (
        lambda contents: contents.update(random_state=dict(numpy=1)),
        'random_state',
    ),
    'generators of a process that are none': (
        lambda contents: contents.update(random_states=[contents['random_state'], 1]),
        'random_state',
    ),
    'generators of no processes': (
        lambda contents: contents.update(random_states='x'),
        'random_states are no list',
    ),
}


def test_the_seed_of_a_run_without_one_is_checked(resume):
    with pytest.raises(SystemExit, match=r'cannot be resumed: its meta\.seed is list'):
        resume(set_meta(seed=[[1]]), 'randomness.seed=None')


def test_the_state_of_a_subclass_is_checked(resume, monkeypatch):
    class Own(torch.optim.AdamW):
        pass

    OPTIMIZERS.register_module(module=Own, force=True)
    with pytest.raises(SystemExit, match='for a parameter of shape'):
        resume(shrink_states, 'optim_wrapper.optimizer.type=Own', *FUSED)


def test_hooks_write_into_the_state_dict_alone(resume, tmp_path):
    def alias(contents):
        """EMAHook puts the averaged weights where the checkpoint says the weights are."""
        state = contents['optimizer']['state'][0]
        contents['state_dict'] = state | contents['state_dict']
        contents['optimizer']['state'][0] = contents['state_dict']
        contents['ema_state_dict']['module.exp_avg'] = torch.zeros(1)

    resume(alias, *FUSED)
    state = torch.load(tmp_path / 'work' / 'iter_8.pth', weights_only=False)['optimizer']['state']
    assert state[0]['exp_avg'].shape == (8, 3, 7, 7)


def test_a_resumed_flexible_runner_is_checked(resume):
    options = ('runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy')
    with pytest.raises(SystemExit, match='for a parameter of shape'):
        resume(shrink_states, *options)


def test_one_cycle_is_resumed(work_dir, tmp_path):
    config = tmp_path / 'one_cycle.py'
    schedule = "dict(type='OneCycleLR', by_epoch=False, eta_max=1e-3, total_steps=4)"
    config.write_text(f'_base_ = {str(work_dir / "tiny.py")!r}\nparam_scheduler = [{schedule}]\n')
    tool = 'train', config, '--work-dir', tmp_path / 'work'
    run_tool(*tool, '--cfg-options', 'train_cfg.max_iters=3')
    run_tool(*tool, '--resume')
    assert (tmp_path / 'work' / 'iter_4.pth').is_file()


def test_a_checkpoint_does_not_replace_the_parameters(resume, tmp_path):
    """PyTorch would put its tensors in their place, and the optimizer train the old ones."""
    before = {}

    def assign(contents):
        before.update(contents['ema_state_dict'])  # the weights that are trained
        for key in ('state_dict', 'ema_state_dict'):
            for version in contents[key]._metadata.values():
                version['assign_to_params_buffers'] = 1

    resume(assign)
    after = torch.load(tmp_path / 'work' / 'iter_8.pth', weights_only=False)['ema_state_dict']
    names = [name for name in before if name.endswith('.weight')]
    assert names and not all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize('case', RESUMED)
def test_a_checkpoint_that_would_harm_the_run_is_refused(case, resume, capsys):
    change, words = RESUMED[case]
    with pytest.raises(SystemExit) as stop:
        resume(change)
    assert words in str(stop.value.code)
    assert '\x1b]' not in capsys.readouterr().err


def test_a_checkpoint_does_not_choose_how_the_optimizer_computes(resume, monkeypatch):
    seen = {}
    from mmengine.hooks import RuntimeInfoHook

    def remember(self, runner):
        seen.update(runner.optim_wrapper.param_groups[0], step=runner.param_schedulers[0].step)

    def choose(contents):
        for group in contents['optimizer']['param_groups']:
            group.update(fused=True, capturable=True)
        contents['param_schedulers'][0].update(step='x', optimizer=1)
        contents['param_schedulers'][1].update(milestones=Counter({5: 10**15}))

    monkeypatch.setattr(RuntimeInfoHook, 'after_train', remember, raising=False)
    resume(choose)
    assert not seen['fused'] and not seen['capturable'] and callable(seen['step'])


def spread(contents):
    """States of one number each, which a fused optimizer takes for numbers in a row."""
    for state in contents['optimizer']['state'].values():
        for name in ('exp_avg', 'exp_avg_sq'):
            shape = state[name].shape
            state[name] = torch.ones(shape).as_strided(shape, (0,) * len(shape))


def forget_implementation(contents):
    for group in contents['optimizer']['param_groups']:
        group.update(fused=None, foreach=None, capturable=None)


def empty_histories(contents):
    scalars = contents['message_hub']['log_scalars']
    scalars.update({'train/loss': HistoryBuffer(), 'train/old': 1.0})


def no_cuda(contents):
    del contents['random_state']['cuda']


@pytest.mark.parametrize('change', [spread, forget_implementation, empty_histories, no_cuda])
def test_a_checkpoint_with_less_than_usual_is_resumed(change, resume, tmp_path):
    resume(change, *FUSED)
    assert (tmp_path / 'work' / 'iter_8.pth').is_file()


def test_weights_alone_start_a_run_that_averages_them(work_dir, tmp_path):
    trained = torch.load(work_dir / 'work' / 'iter_4.pth', weights_only=False)['state_dict']
    torch.save(trained, tmp_path / 'bare.pth')
    run_tool(
        'train', work_dir / 'tiny.py', '--work-dir', tmp_path / 'work', '--cfg-options',
        f'load_from={tmp_path / "bare.pth"}', 'train_cfg.max_iters=1',
    )  # fmt: skip
    assert (tmp_path / 'work' / 'iter_1.pth').is_file()


def test_weights_without_names_are_refused_by_name(work_dir, tmp_path, capsys):
    torch.save({'state_dict': {1: torch.ones(2)}}, tmp_path / 'numbers.pth')
    words = tool_error(
        capsys, 'train', work_dir / 'tiny.py', '--work-dir', tmp_path / 'work', '--cfg-options',
        f'load_from={tmp_path / "numbers.pth"}',
    )  # fmt: skip
    assert 'numbers.pth has entries that are no plain tensors' in words


@pytest.mark.parametrize('draws', [0, 1, 2, 500, 623, 624, 625])
def test_states_of_generators_are_taken(draws):
    torch.manual_seed(0)
    np.random.seed(0)
    torch.randint(10, (draws,))
    np.random.randint(10, size=draws)
    state = random_state()
    expected = torch.rand(3), np.random.rand()
    set_random_state(state)
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    assert np.random.rand() == expected[1]


def beyond_numpy(state):
    state['numpy'][2] = 2**30


def more_numbers(state):
    state['numpy'][1] = torch.zeros(3_000_000, dtype=torch.uint8)
    state['numpy'][2] = 3_000_000


def beyond_torch(state):
    numbers = state['torch'].numpy().view(np.uint8)
    numbers[8:12] = np.frombuffer(np.int32(624).tobytes(), np.uint8)
    numbers[16:24] = np.frombuffer(np.uint64(624).tobytes(), np.uint8)


def below_zero(state):
    state['python'][1] = [-1] * 625


def huge_gauss(state):
    state['numpy'][3] = 2**100


@pytest.mark.parametrize(
    'change', [beyond_numpy, more_numbers, beyond_torch, below_zero, huge_gauss]
)
def test_a_generator_that_would_read_beyond_its_numbers_is_refused(change):
    state = random_state()
    change(state)
    with pytest.raises(LaunchError, match='random_state'):
        set_random_state(state)


def test_records_that_overlap_are_broken(tmp_path):
    path = tmp_path / 'iter_3.pth'
    torch.save({'a': torch.ones(2**18)}, path)
    content = path.read_bytes()
    start, end = content.index(b'PK\x01\x02'), content.index(b'PK\x06\x06')
    directory = content[start:end] * 50
    tail = bytearray(content[end:])
    last = tail.rindex(b'PK\x05\x06')
    count = int.from_bytes(tail[last + 10 : last + 12], 'little') * 50
    tail[last + 8 : last + 12] = count.to_bytes(2, 'little') * 2
    tail[last + 12 : last + 16] = len(directory).to_bytes(4, 'little')
    path.write_bytes(content[:start] + directory + bytes(tail[last:]))
    with zipfile.ZipFile(path) as file:
        assert len(file.infolist()) == count
    assert not is_intact(path)


def link_to_nothing(path):
    path.symlink_to('gone')


def link_to_itself(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize('make', [link_to_nothing, link_to_itself])
@pytest.mark.parametrize('name', ['iter_5.pth', 'last_checkpoint'])
def test_links_that_lead_nowhere_leave_older_checkpoints_to_be_found(name, make, tmp_path):
    torch.save({'a': torch.ones(2)}, tmp_path / 'iter_3.pth')
    os.utime(tmp_path / 'iter_3.pth', (0, 0))
    make(tmp_path / name)
    cfg = Config(dict(work_dir=str(tmp_path), launcher='none'))
    assert find_start(cfg, AUTO) == str(tmp_path / 'iter_3.pth')
    (tmp_path / 'iter_3.pth').unlink()
    with pytest.raises(LaunchError, match='no checkpoint in'):
        find_start(cfg, AUTO)


@pytest.mark.parametrize('pointer', [b'\xff\xfe.pth', b'\x1b]0;owned\x07.pth'])
def test_a_pointer_that_is_no_text_is_named_in_the_message(pointer, tmp_path, capsys):
    (tmp_path / os.fsdecode(pointer)).write_bytes(b'broken')
    (tmp_path / 'last_checkpoint').write_bytes(pointer)
    with pytest.raises(LaunchError, match='last_checkpoint names') as error:
        find_start(Config(dict(work_dir=str(tmp_path), launcher='none')), AUTO)
    assert (str(error.value) + capsys.readouterr().err).isprintable()


@pytest.mark.parametrize('damage', ['encrypted', 'method', 'pointer'])
def test_a_broken_newest_checkpoint_is_found_whatever_is_broken(damage, tmp_path):
    path = tmp_path / 'iter_3.pth'
    torch.save({'a': torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    if damage == 'pointer':
        (tmp_path / 'last_checkpoint').write_bytes(b'\xff' * 5000)
        assert newest_intact_checkpoint(tmp_path) == (path, [])
        return
    entry = content.index(b'PK\x01\x02')
    content[entry + (8 if damage == 'encrypted' else 10)] ^= 99 if damage == 'method' else 1
    path.write_bytes(content)
    assert newest_intact_checkpoint(tmp_path) == (None, [path])


# --- mmengine's names --------------------------------------------------------------------------


def test_mmengine_reads_no_file_by_itself(tmp_path, monkeypatch):
    register_loaders(replace=True)
    readers = {reader.__module__ for reader in CheckpointLoader._schemes.values()}
    assert readers == {'mmpoolformer.checkpoints.sources'}
    for source in ('s3://bucket/a.pth', 'x:petrel://a.pth', 'pavi://a.pth', 'mmcls://resnet50'):
        with pytest.raises(CheckpointError, match='unknown scheme'):
            CheckpointLoader.load_checkpoint(source)


def test_names_of_mmengines_zoos(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    torch.save({'a': torch.ones(2)}, tmp_path / 'checkpoints' / 'model-0123abcd.pth')
    url = 'https://download.example/model-0123abcd.pth'
    monkeypatch.setattr('mmengine.load', lambda *_: {'detector': url})
    monkeypatch.setattr('mmengine.runner.checkpoint.load_file', lambda *_: {'detector': url})
    assert torch.equal(read_checkpoint('open-mmlab://detector')['a'], torch.ones(2))
    with pytest.raises(CheckpointError, match='open-mmlab://gone cannot be fetched'):
        read_checkpoint('open-mmlab://gone')


@pytest.mark.parametrize('name', ['hf-hub:someone/model', 'local-dir:/tmp', 'a/b'])
def test_timm_is_asked_for_its_own_models_alone(name):
    with pytest.raises(CheckpointError, match='the name of one of its models'):
        read_checkpoint(f'timm://{name}')
