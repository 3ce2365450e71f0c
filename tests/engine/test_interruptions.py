"""Runs that are killed: what is on disk is whole, and the resumed run is the same run."""

import atexit
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY_LOOPS, run_tool, tool_error, write_tiny_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmpoolformer.engine.checkpointing import find_checkpoints, is_intact, newest_intact_checkpoint
from mmpoolformer.engine.lock import lock_work_dir
from mmpoolformer.engine.resumed import warn_of_lost_state
from mmpoolformer.engine.resuming import random_state, set_random_state
from mmpoolformer.engine.signals import WorkerSignals

ITERS = 8


class Interrupt(Hook):
    """Do something to the process after an iteration, before its checkpoint is written."""

    priority = 'HIGH'

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            ACTIONS[self.action]()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.iteration == 'evaluation' and runner.iter == ITERS:
            ACTIONS[self.action]()


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing gets a chance to clean up."""


def kill():
    raise Killed


ACTIONS = {'kill': kill, 'terminate': lambda: os.kill(os.getpid(), signal.SIGTERM)}
HOOKS.register_module(module=Interrupt, force=True)


def train(config, work_dir, *args, interrupt=None):
    if interrupt:
        iteration, action = interrupt
        hooks = [
            dict(type='EMAHook', momentum=0.1),
            dict(type='Interrupt', iteration=iteration, action=action),
        ]
        base, config = config, config.with_name('interrupted.py')
        config.write_text(f'_base_ = {str(base)!r}\ncustom_hooks = {hooks!r}\n')
    run_tool('train', config, '--work-dir', work_dir, '--deterministic', *args)


def outcome(work_dir):
    """The last checkpoint's weights, averaged weights and optimizer, and the metrics."""
    last = Path((work_dir / 'last_checkpoint').read_text())
    checkpoint = torch.load(last, weights_only=False)
    parts = {key: checkpoint[key] for key in ('state_dict', 'ema_state_dict')}
    moments = [state['exp_avg'] for state in checkpoint['optimizer']['state'].values()]
    return last.name, parts, moments, (work_dir / 'val_metrics.json').read_text()


def assert_same(first, second):
    assert first[0] == second[0] and first[3] == second[3]
    torch.testing.assert_close(first[1:3], second[1:3], rtol=0, atol=0)


@pytest.fixture(autouse=True)
def default_handler():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # after a kill nothing does it


@pytest.fixture(scope='module', params=TINY_LOOPS)
def loop(request):
    return request.param


@pytest.fixture(scope='module')
def uninterrupted(loop, digits_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp(loop)
    config = write_tiny_config(folder, loop, digits_root)
    train(config, folder / 'work')
    return config, outcome(folder / 'work')


@pytest.mark.parametrize('where', [4, 5, 7, 'evaluation'])
def test_a_killed_run_resumes_to_the_same_end(where, uninterrupted, tmp_path):
    config, expected = uninterrupted
    with pytest.raises(Killed):
        train(config, tmp_path, interrupt=(where, 'kill'))
    train(config, tmp_path, '--resume')
    assert_same(outcome(tmp_path), expected)


@pytest.mark.parametrize('where', [1, 5, 6])
def test_sigterm_saves_and_resumes_to_the_same_end(where, uninterrupted, tmp_path, capsys):
    config, expected = uninterrupted
    with pytest.raises(SystemExit) as stop:
        train(config, tmp_path, interrupt=(where, 'terminate'))
    assert stop.value.code == 128 + signal.SIGTERM
    message = capsys.readouterr().err
    assert f'iteration {where}' in message and '--resume' in message
    assert Path((tmp_path / 'last_checkpoint').read_text()) == tmp_path / f'iter_{where}.pth'
    train(config, tmp_path, '--resume')
    assert_same(outcome(tmp_path), expected)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_the_newest_checkpoints_are_kept_and_all_are_whole(uninterrupted):
    config, _ = uninterrupted
    work = config.parent / 'work'
    checkpoints = find_checkpoints(work)
    assert len(checkpoints) == 2 and all(map(is_intact, checkpoints))
    assert not list(work.rglob('*.partial'))


def test_sigterm_waits_for_the_gradients_that_are_being_accumulated(digits_root, tmp_path):
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root)
    option = 'optim_wrapper.accumulative_counts=3'
    with pytest.raises(SystemExit):
        train(config, tmp_path / 'w', '--cfg-options', option, interrupt=(4, 'terminate'))
    assert (tmp_path / 'w' / 'last_checkpoint').read_text().endswith('iter_6.pth')


@pytest.fixture
def job_with_workers(digits_root, tmp_path):
    """Start a run of many or few iterations with workers that stay, in a session of its own."""
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root, iters=2000)

    def start(iters):
        options = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
        options += [f'train_cfg.max_iters={iters}', 'train_cfg.val_interval=2000']
        options += ['default_hooks.checkpoint.interval=2000']
        command = [sys.executable, ROOT / 'tools' / 'train.py', config]
        return subprocess.Popen(
            [*map(str, command), '--work-dir', tmp_path / 'work', '--cfg-options', *options],
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def test_sigterm_to_the_whole_job_leaves_the_workers_time_to_save(job_with_workers, tmp_path):
    process = job_with_workers(2000)
    while process.poll() is None and count_lines(tmp_path / 'work') < 5:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in errors, errors
    assert is_intact(Path((tmp_path / 'work' / 'last_checkpoint').read_text()))


def test_a_worker_outlives_one_sigterm_for_as_long_as_an_iteration_takes():
    before = signal.getsignal(signal.SIGTERM)
    signals = WorkerSignals(None)
    atexit.unregister(signals._end_run)  # this process is no run
    try:
        signals(0)
        signal.raise_signal(signal.SIGTERM)
        assert signal.alarm(0) == 0  # no clock ends it
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second does
    finally:
        signal.signal(signal.SIGTERM, before)


def test_workers_end_with_the_run(job_with_workers):
    process = job_with_workers(3)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0 and 'Exception ignored' not in errors, errors


def test_without_a_seed_a_resumed_run_keeps_the_order_of_the_data(run, tmp_path):
    config, _ = run
    free = config.with_name('free.py')
    free.write_text(f'_base_ = {str(config)!r}\nrandomness = dict(seed=None)\n')
    train(free, tmp_path / 'first')
    for name in ('second', 'third'):
        options = ['--cfg-options', 'train_cfg.max_iters=9']
        train(free, tmp_path / name, '--resume', tmp_path / 'first' / 'iter_4.pth', *options)
    assert_same(outcome(tmp_path / 'second'), outcome(tmp_path / 'third'))


# A broken disk -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def short_run(digits_root, tmp_path_factory):
    """A run with its checkpoints of iterations 4, the best, and 6, the last; and a copy of it."""
    folder = tmp_path_factory.mktemp('short')
    config = write_tiny_config(folder, 'by_iteration', digits_root, iters=6)
    train(config, folder / 'work')
    shutil.copytree(folder / 'work', folder / 'copy')
    return config, folder / 'work', folder / 'copy'


@pytest.fixture
def run(short_run):
    """The short run as it was, in its place."""
    config, work, copy = short_run
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(copy, work)
    return config, work


def truncate(content):
    return content[:-100]


def flip_bits(content):
    middle = len(content) // 2  # in a tensor
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize('damage', [truncate, flip_bits])
def test_a_broken_newest_checkpoint_is_passed_over_loudly(damage, run, capsys):
    config, work = run
    newest = work / 'iter_6.pth'
    newest.write_bytes(damage(newest.read_bytes()))
    assert newest_intact_checkpoint(work) == (work / 'iter_4.pth', [newest])
    train(config, work, '--resume')
    assert 'iter_6.pth is BROKEN' in capsys.readouterr().err
    assert is_intact(newest)  # written again


@pytest.mark.parametrize('pointer', [None, '', 'gone/iter_9.pth'])
def test_without_a_good_pointer_the_newest_checkpoint_is_found(pointer, run):
    _, work = run
    (work / 'last_checkpoint').unlink()
    if pointer is not None:
        (work / 'last_checkpoint').write_text(pointer)
    assert newest_intact_checkpoint(work) == (work / 'iter_6.pth', [])


def test_without_a_pointer_the_iteration_counts_and_not_the_age(run):
    _, work = run
    (work / 'last_checkpoint').unlink()
    newest = (work / 'iter_6.pth').stat().st_mtime
    os.utime(work / 'iter_4.pth', (newest + 60, newest + 60))  # as of a copy
    assert [path.name for path in find_checkpoints(work)] == ['iter_6.pth', 'iter_4.pth']


def test_checkpoints_by_epoch_and_by_iteration_are_compared(tmp_path):
    for name, iteration in (('epoch_9', 18), ('iter_19', 19), ('epoch_10', 20), ('iter_3', 3)):
        torch.save(dict(meta=dict(iter=iteration)), tmp_path / f'{name}.pth')
    (tmp_path / 'epoch_11.pth').write_bytes(b'broken')
    names = [path.stem for path in find_checkpoints(tmp_path)]
    assert names == ['epoch_10', 'iter_19', 'epoch_9', 'iter_3', 'epoch_11']


def hold(work, held, done):
    lock = lock_work_dir(work)
    held.set()
    done.wait()
    lock.close()


@pytest.mark.parametrize('end', ['done', 'killed'])
def test_two_runs_in_one_work_dir(end, run, capsys):
    config, work = run
    context = multiprocessing.get_context('fork')
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(work, held, done))
    other.start()
    held.wait(60)
    before = {path: path.stat().st_mtime_ns for path in work.rglob('*')}
    message = tool_error(capsys, 'train', config, '--work-dir', work)
    assert f'in use by process {other.pid} on' in message and '--work-dir' in message
    assert {path: path.stat().st_mtime_ns for path in work.rglob('*')} == before
    done.set() if end == 'done' else other.kill()
    other.join()
    lock_work_dir(work).close()  # whatever its file says


def test_ctrl_c_waits_for_the_checkpoint_that_is_being_written(run, monkeypatch):
    config, work = run
    save, saved = torch.save, []

    def interrupted_save(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        saved.append(save(*args, **kwargs))

    monkeypatch.setattr('torch.save', interrupted_save)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    options = ['--cfg-options', 'train_cfg.max_iters=9', 'train_cfg.val_interval=100']
    with pytest.raises(SystemExit) as stop:
        train(config, work, '--resume', *options)
    assert stop.value.code == 128 + signal.SIGINT and len(saved) == 1
    assert is_intact(work / 'iter_9.pth') and not list(work.rglob('*.partial'))


def test_a_work_dir_that_disappears_is_named(run, monkeypatch):
    config, work = run
    monkeypatch.setitem(ACTIONS, 'kill', lambda: shutil.rmtree(work))
    with pytest.raises(SystemExit) as stop:
        train(config, work, interrupt=(2, 'kill'))
    message = str(stop.value.code)
    assert f'work dir {work} was removed' in message and 'check_dataset' not in message


def test_a_moved_work_dir_resumes(run, tmp_path):
    _, work = run
    work.rename(tmp_path / 'moved')
    assert newest_intact_checkpoint(tmp_path / 'moved')[0] == tmp_path / 'moved' / 'iter_6.pth'


def test_only_broken_checkpoints_do_not_start_the_run_anew(run, capsys):
    config, work = run
    for path in work.glob('*.pth'):
        path.write_bytes(b'')
    message = tool_error(capsys, 'train', config, '--work-dir', work, '--resume')
    assert 'iter_4.pth' in message and 'iter_6.pth' in message and 'Remove them' in message


def test_a_full_disk_leaves_the_last_checkpoint(run, monkeypatch, capsys):
    config, work = run
    before = {path: path.read_bytes() for path in work.glob('*.pth')}

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('mmengine.fileio.LocalBackend.put', full)
    options = ['--cfg-options', 'train_cfg.max_iters=9']
    message = tool_error(capsys, 'train', config, '--work-dir', work, '--resume', *options)
    assert 'No space left' in message and 'iter_6.pth' in message and '--resume' in message
    assert {path: path.read_bytes() for path in work.glob('*.pth')} == before
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_6.pth')
    assert not list(work.rglob('*.partial'))


def test_a_work_dir_that_cannot_be_written_is_refused(run, tmp_path, capsys):
    config, _ = run
    (tmp_path / 'file').write_text('')
    message = tool_error(capsys, 'train', config, '--work-dir', tmp_path / 'file' / 'work')
    assert 'cannot write to the work dir' in message


def test_a_compiled_model_is_tested_where_the_config_averages_weights(run, tmp_path, monkeypatch):
    config, work = run
    monkeypatch.setattr(torch, 'compile', lambda forward, **_: forward)
    args = [config, work / 'iter_6.pth', '--work-dir', tmp_path]
    run_tool('test', *args, '--compile')
    compiled = (tmp_path / 'test_metrics.json').read_text()
    run_tool('test', *args)
    assert (tmp_path / 'test_metrics.json').read_text() == compiled


def test_what_a_resumed_run_has_forgotten_is_said(capsys):
    augment = dict(type='BatchSyncRandomResize', random_size_range=(480, 800))
    warn_of_lost_state(Config(dict(model=dict(data_preprocessor=dict(batch_augments=[augment])))))
    assert 'warning: BatchSyncRandomResize keep' in capsys.readouterr().err
    warn_of_lost_state(Config(dict(model=dict(type='RetinaNet'))))
    assert not capsys.readouterr().err


@pytest.mark.parametrize('name', ['config.py', '.running'])
def test_a_file_outside_of_the_work_dir_is_not_written_over(name, digits_root, tmp_path, capsys):
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root, iters=2)
    (tmp_path / 'outside').write_text('kept')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / name).symlink_to(tmp_path / 'outside')
    message = tool_error(capsys, 'train', config, '--work-dir', tmp_path / 'work')
    assert f'{name} is a link' in message and '--work-dir' in message
    assert (tmp_path / 'outside').read_text() == 'kept'


def test_an_image_that_disappears_is_named(run, digits_root, monkeypatch, capsys):
    config, work = run
    victim = next((digits_root / 'images' / 'training').iterdir())
    content = victim.read_bytes()

    def vanish():
        victim.unlink()

    monkeypatch.setitem(ACTIONS, 'kill', vanish)
    try:
        with pytest.raises(SystemExit) as stop:
            train(config, work, '--cfg-options', 'train_cfg.max_iters=40', interrupt=(2, 'kill'))
    finally:
        victim.write_bytes(content)
    assert victim.name in stop.value.code and 'check_dataset' in stop.value.code


def test_random_states_are_restored():
    state = random_state()
    first = random.random(), np.random.rand(), torch.rand(1)
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1)) == first


# Any moment ----------------------------------------------------------------------------------


@pytest.mark.long
def test_twenty_kills_at_random_moments(digits_root, tmp_path):
    """Real processes and SIGKILL; the moments differ from run to run."""
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root, iters=60)
    command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--deterministic']
    env = dict(os.environ, OMP_NUM_THREADS='1')

    def start(work, *args):
        log = (tmp_path / 'log.txt').open('a')
        command_line = [*map(str, command), '--work-dir', str(work), *args]
        return subprocess.Popen(command_line, env=env, stdout=log, stderr=log)

    assert start(tmp_path / 'whole').wait() == 0
    kills = 0
    for work in (tmp_path / f'killed_{number}' for number in range(4)):
        for _ in range(6):  # some of them after the end of the run
            process = start(work, '--resume')
            began = count_lines(work)
            while process.poll() is None and count_lines(work) == began:
                time.sleep(0.02)  # until it trains
            time.sleep(random.uniform(0, 1.5))
            process.kill()
            kills += process.wait() != 0
            pointer = work / 'last_checkpoint'
            assert not pointer.exists() or is_intact(Path(pointer.read_text()))
        assert start(work, '--resume').wait() == 0
        assert_same(outcome(work), outcome(tmp_path / 'whole'))
    assert kills >= 20
    print(f'{kills} kills')


def count_lines(work):
    return sum(len(path.read_text().splitlines()) for path in work.glob('*/vis_data/scalars.json'))
