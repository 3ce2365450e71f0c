"""Where a training starts, and what its work dir says of it afterwards."""

import shutil

import pytest
import torch
from helpers import run_tool, tool_error, write_tiny_config
from mmengine.config import Config

from mmpoolformer.engine.checkpointing import (
    POINTER,
    STARTED,
    begin,
    find_checkpoints,
    write_pointer,
)
from mmpoolformer.engine.start import AUTO, find_start
from mmpoolformer.utils.errors import LaunchError

ITERS = ['--cfg-options', 'train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=2']
MORE = ['--cfg-options', 'train_cfg.max_iters=3', 'default_hooks.checkpoint.interval=1']
MORE += ['default_hooks.checkpoint.max_keep_ckpts=9']


@pytest.fixture(scope='module')
def finished(digits_root, tmp_path_factory):
    """A config, and a run of two iterations."""
    folder = tmp_path_factory.mktemp('finished')
    config = write_tiny_config(folder, 'by_iteration', digits_root)
    run_tool('train', config, '--work-dir', folder / 'work', *ITERS)
    return config, folder / 'work'


@pytest.fixture
def work_dir(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / 'work')


def empty(work_dir, **fields):
    return Config(dict(work_dir=str(work_dir), launcher='none', **fields))


def first_weights(checkpoint):
    contents = torch.load(checkpoint, weights_only=False)
    return contents['meta']['iter'], contents['state_dict']


def test_with_nothing_to_resume_it_starts_from_the_weights(finished, tmp_path, capsys):
    config, work = finished
    weights = f'load_from={work / "iter_2.pth"}'
    rates = ['optim_wrapper.optimizer.lr=0.0', 'param_scheduler=[]']
    run_tool('train', config, '--work-dir', tmp_path, '--resume', *MORE, weights, *rates)
    assert 'starts from the weights in' in capsys.readouterr().out
    iteration, trained = first_weights(tmp_path / 'iter_1.pth')
    expected = first_weights(work / 'iter_2.pth')[1]
    parameters = [key for key in trained if key.endswith('weight')]
    assert iteration == 1 and parameters
    for key in parameters:
        torch.testing.assert_close(trained[key], expected[key], rtol=0, atol=0)


def test_the_copy_of_the_config_begins_anew(finished, work_dir, tmp_path):
    config, _ = finished
    run_tool('train', config, '--work-dir', work_dir, '--resume', *MORE)
    copy = Config.fromfile(work_dir / 'config.py')
    assert not copy.resume and copy.load_from is None
    run_tool('train', work_dir / 'config.py', '--work-dir', tmp_path / 'new')
    assert first_weights(tmp_path / 'new' / 'iter_1.pth')[0] == 1


def test_a_test_leaves_no_weights_in_the_copy_of_the_config(finished, tmp_path):
    config, work = finished
    run_tool('test', config, work / 'iter_2.pth', '--work-dir', tmp_path)
    assert Config.fromfile(tmp_path / 'config.py').load_from is None


def test_a_run_that_starts_anew_leaves_the_earlier_one_out(work_dir, capsys):
    assert find_start(empty(work_dir), AUTO) == str(work_dir / 'iter_2.pth')
    begin(work_dir, None)
    assert 'checkpoints of an earlier run, such as iter_2.pth' in capsys.readouterr().err
    assert (work_dir / 'iter_2.pth').exists() and not (work_dir / POINTER).exists()
    with pytest.raises(LaunchError, match=r'--resume .*iter_2\.pth; to start anew'):
        find_start(empty(work_dir), AUTO)
    shutil.copy(work_dir / 'iter_2.pth', work_dir / 'iter_1.pth')
    write_pointer(work_dir, str(work_dir / 'iter_1.pth'))  # its own first
    assert not (work_dir / STARTED).exists()
    assert find_checkpoints(work_dir)[0] == work_dir / 'iter_1.pth'


def test_a_start_that_fails_leaves_the_earlier_run_to_be_gone_on_with(finished, work_dir, capsys):
    args = [finished[0], '--work-dir', work_dir, *ITERS]
    assert 'cannot be built' in tool_error(capsys, 'train', *args, 'model.neck.channels_=3')
    torch.save({'state_dict': {'x': torch.ones(2)}}, work_dir / 'other.pth')
    tool_error(capsys, 'train', *args, '--resume', work_dir / 'other.pth')
    assert find_start(empty(work_dir), AUTO) == str(work_dir / 'iter_2.pth')


def test_a_chosen_checkpoint_is_not_one_of_the_same_name(finished, work_dir):
    begin(work_dir, str(finished[1] / 'iter_2.pth'))
    assert find_start(empty(work_dir), AUTO) == str(finished[1] / 'iter_2.pth')
    write_pointer(work_dir, str(work_dir / 'iter_2.pth'))
    assert find_start(empty(work_dir), AUTO) == str(work_dir / 'iter_2.pth')


def test_epochs_that_never_end_are_refused(finished, tmp_path, capsys):
    loop = 'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=1)'
    (tmp_path / 'epochs.py').write_text(f'_base_ = {str(finished[0])!r}\n{loop}\n')
    message = tool_error(capsys, 'train', tmp_path / 'epochs.py', '--work-dir', tmp_path / 'work')
    assert 'InfiniteSampler of train_dataloader never ends one' in message


@pytest.mark.parametrize('where', ['work dir', 'elsewhere'])
def test_a_run_that_goes_on_from_a_chosen_checkpoint_is_gone_on_with(where, finished, work_dir):
    """Before it has a checkpoint of its own, and not the one that was given up."""
    chosen = (work_dir if where == 'work dir' else finished[1]) / 'iter_1.pth'
    shutil.copy(work_dir / 'iter_2.pth', chosen)
    begin(work_dir, str(chosen))
    assert find_start(empty(work_dir), AUTO) == str(chosen)
    chosen.unlink()


def test_a_link_in_the_place_of_a_mark_is_refused(finished, work_dir, tmp_path, capsys):
    (work_dir / STARTED).symlink_to(tmp_path / 'outside')
    assert 'is a link' in tool_error(capsys, 'train', finished[0], '--work-dir', work_dir)
    assert not (tmp_path / 'outside').exists()


def test_a_copied_work_dir_goes_on_from_its_own_checkpoint(finished, work_dir):
    """The pointer still names the original's."""
    assert (work_dir / POINTER).read_text() == str(finished[1] / 'iter_2.pth')
    assert find_start(empty(work_dir), AUTO) == str(work_dir / 'iter_2.pth')


def test_a_checkpoint_outside_of_the_work_dir_is_said(finished, work_dir, capsys):
    (work_dir / 'iter_2.pth').unlink()
    assert find_start(empty(work_dir), AUTO) == str(finished[1] / 'iter_2.pth')
    assert 'is not in the work dir' in capsys.readouterr().err


@pytest.mark.parametrize('given', [None, 'FILE'])
def test_a_config_may_resume(given, finished, tmp_path):
    file = str(finished[1] / 'iter_2.pth')
    cfg = empty(finished[1], resume=True, load_from=given and file)
    assert find_start(cfg, None) == file
    assert not cfg.resume and cfg.load_from is None


def test_a_run_that_is_at_its_end_says_so(finished, work_dir):
    run_tool('train', finished[0], '--work-dir', work_dir, '--resume', *ITERS)
    logs = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    assert 'nothing is left to train: it stands at iteration 2 of 2' in logs


def test_what_sigterm_saved_is_removed_from_its_own_work_dir_alone(finished, work_dir, tmp_path):
    config, _ = finished
    contents = torch.load(work_dir / 'iter_2.pth', weights_only=False)
    contents['meta']['interrupted'] = True
    torch.save(contents, tmp_path / 'theirs.pth')
    run_tool('train', config, '--work-dir', work_dir, '--resume', tmp_path / 'theirs.pth', *MORE)
    assert (work_dir / 'iter_2.pth').exists() and (work_dir / 'iter_3.pth').exists()


@pytest.fixture
def warming_up(finished, tmp_path):
    def config(end):
        warm_up = f"dict(type='LinearLR', start_factor=0.1, by_epoch=False, end={end})"
        text = f'_base_ = {str(finished[0])!r}\nparam_scheduler = [{warm_up}]\n'
        (tmp_path / 'warming_up.py').write_text(text)
        return tmp_path / 'warming_up.py'

    return config


def test_a_warm_up_that_is_never_left_is_refused(warming_up, tmp_path, capsys):
    args = [warming_up(1), '--work-dir', tmp_path, *ITERS]
    assert 'is never left' in tool_error(capsys, 'train', *args)


def test_a_constant_end_is_no_warm_up(finished, tmp_path):
    end = "dict(type='ConstantLR', factor=1, by_epoch=False, begin=1, end=2)"
    text = f'_base_ = {str(finished[0])!r}\nparam_scheduler = [{end}]\n'
    (tmp_path / 'end.py').write_text(text)
    run_tool('train', tmp_path / 'end.py', '--work-dir', tmp_path / 'work', *ITERS)
    assert (tmp_path / 'work' / 'iter_2.pth').exists()


def test_a_warm_up_beyond_the_end_is_said(warming_up, tmp_path):
    run_tool('train', warming_up(500), '--work-dir', tmp_path, *ITERS)
    logs = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert 'takes 500 iterations, and the training has 2' in logs


def test_ctrl_c_names_the_newest_checkpoint(finished, tmp_path, capsys, monkeypatch):
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmengine.runner.IterBasedTrainLoop.run_iter', interrupt)
    with pytest.raises(SystemExit) as stop:
        run_tool('train', finished[0], '--work-dir', tmp_path, *ITERS)
    assert stop.value.code == 130
    assert 'iteration 1: there is no checkpoint yet' in capsys.readouterr().err


def test_names_that_nothing_reads_are_said(finished, tmp_path, capsys):
    config, work = finished
    text = f'_base_ = {str(config)!r}\nmax_iters = 100\ntrain_pipeline = []\nused = 1\nlr = used\n'
    (tmp_path / 'child.py').write_text(text)
    run_tool('train', tmp_path / 'child.py', '--work-dir', work, '--resume', *ITERS)
    message = capsys.readouterr().err
    assert 'nothing reads max_iters: set train_cfg.max_iters' in message
    assert 'nothing reads train_pipeline: set train_dataloader.' in message
    assert 'nothing reads lr: set optim_wrapper.optimizer.lr' in message
    assert ' used:' not in message and '_base_:' not in message
    text = "_base_ = ['child.py']\nown = 1\nwork_dir = str(_base_.lr)\n"
    (tmp_path / 'grandchild.py').write_text(text)
    run_tool('swap_backbone', tmp_path / 'grandchild.py')
    message = capsys.readouterr().err
    assert 'nothing reads max_iters' in message and 'own: mmengine, the toolboxes' in message
    assert 'nothing reads lr' not in message
