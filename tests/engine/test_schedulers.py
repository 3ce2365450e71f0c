"""Real schedulers on this machine: slurm, OpenMPI, and torchrun's agents of two nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from helpers import ROOT, free_port, run_tool, write_tiny_config
from loopback_cluster import (
    MISSING,
    PARTITION,
    job_field,
    output,
    slurm_cluster,
    two_hosts,
    wait_for,
)

pytestmark = pytest.mark.long
ITERATIONS = 60
OPTIONS = [
    '--seed', '1', '--deterministic', '--cfg-options', f'train_cfg.max_iters={ITERATIONS}',
    f'train_cfg.val_interval={ITERATIONS}', 'default_hooks.checkpoint.interval=20',
    'default_hooks.checkpoint.max_keep_ckpts=9',
]  # fmt: skip
MINUTES = 600  # seconds that a training may take on a busy machine


@pytest.fixture(scope='module')
def config(digits_root, tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp('config'), 'by_iteration', digits_root)


@pytest.fixture
def environment():
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return env | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())


def lines(work):
    return sum(len(path.read_text().splitlines()) for path in work.glob('*/vis_data/scalars.json'))


def weights(work):
    return torch.load(work / f'iter_{ITERATIONS}.pth', weights_only=False)['state_dict']


# slurm ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    if MISSING:
        pytest.skip(f'no {", ".join(MISSING)}: apt-get install slurm-wlm munge')
    with slurm_cluster(tmp_path_factory.mktemp('cluster')) as env:
        yield env


@pytest.fixture
def submit(cluster, environment, tmp_path):
    """Run a script of ``tools/`` in a job of two tasks; return the job's number."""
    env = cluster | environment
    env |= dict(GPUS='2', GPUS_PER_NODE='2', CPUS_PER_TASK='1')
    del env['MASTER_ADDR']  # slurm says it

    def start(script, *args):
        command = ['bash', ROOT / 'tools' / script, PARTITION, 'job', *args]
        batch = tmp_path / f'{script}.batch'
        batch.write_text('#!/bin/bash\n' + ' '.join(f"'{word}'" for word in command) + '\n')
        options = ['--parsable', '--requeue', '--open-mode=append', '--ntasks=2', '--gres=gpu:2']
        options += [f'--partition={PARTITION}', f'--output={tmp_path / "job.log"}']
        return output(['sbatch', *options, batch], env).strip()

    return start


def wait_for_end(job, state, cluster, log):
    ended = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL')
    wait_for(lambda: job_field(job, 'JobState', cluster) in ended, MINUTES, 'end of the job')
    assert job_field(job, 'JobState', cluster) == state, log.read_text()[-3000:]


def test_slurm_preempts_requeues_and_resumes_to_the_same_end(cluster, submit, config, tmp_path):
    log = tmp_path / 'job.log'
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    wait_for_end(
        submit('slurm_train.sh', config, '--work-dir', whole, *OPTIONS), 'COMPLETED', cluster, log
    )
    job = submit('slurm_train.sh', config, '--work-dir', stopped, '--resume', *OPTIONS)
    wait_for(lambda: lines(stopped) >= 5, MINUTES, 'training')
    output(['scancel', '--signal=TERM', job], cluster)
    wait_for_end(job, 'FAILED', cluster, log)  # with exit code 143, as it is not done
    text = log.read_text()
    assert 'stopped by SIGTERM after iteration' in text and 'Traceback' not in text, text[-3000:]
    saved = Path((stopped / 'last_checkpoint').read_text())
    assert saved.is_file() and saved.name != f'iter_{ITERATIONS}.pth'
    output(['scontrol', 'requeue', job], cluster)
    output(['scontrol', 'update', f'JobId={job}', 'StartTime=now'], cluster)
    wait_for(lambda: job_field(job, 'Restarts', cluster) == '1', 60, 'requeued job')
    wait_for(lambda: job_field(job, 'JobState', cluster) != 'FAILED', 60, 'requeued job')
    wait_for_end(job, 'COMPLETED', cluster, log)
    # Not the metrics: on CPUs each process has batch norm statistics of its own, of which the
    # first one's are saved.
    torch.testing.assert_close(weights(stopped), weights(whole), rtol=0, atol=0)

    last = whole / f'iter_{ITERATIONS}.pth'
    test = submit('slurm_test.sh', config, last, '--work-dir', tmp_path / 'tested')
    wait_for_end(test, 'COMPLETED', cluster, log)
    run_tool('test', config, last, '--work-dir', tmp_path / 'alone')
    tested, alone = (
        json.loads((tmp_path / name / 'test_metrics.json').read_text())
        for name in ('tested', 'alone')
    )
    assert tested['mIoU'] == alone['mIoU']


# OpenMPI -------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which('mpirun') is None, reason='no mpirun: apt-get install openmpi-bin')
def test_mpirun_trains_in_two_processes(config, environment, tmp_path):
    command = ['mpirun', '--allow-run-as-root', '--oversubscribe', '-np', 2, sys.executable]
    command += [ROOT / 'tools' / 'train.py', config, '--launcher', 'mpi']
    command += ['--work-dir', tmp_path, *OPTIONS, 'train_cfg.max_iters=6']
    run = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=MINUTES
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / 'iter_6.pth').is_file()


# Two nodes -----------------------------------------------------------------------------------


@pytest.fixture
def start_node(environment, tmp_path):
    """Start one of two nodes, an agent with one process, in a session of its own."""
    started = []

    def start(number, command, **variables):
        log = (tmp_path / f'node_{number}.log').open('a')
        process = subprocess.Popen(
            list(map(str, command)), env=environment | variables, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_node(process):
    """As a machine that fails: agent and process at once."""
    listed = output(['ps', '-o', 'pid=', '--ppid', process.pid], None).split()
    os.killpg(process.pid, signal.SIGKILL)
    for child in map(int, listed):  # torchrun gives its processes sessions of their own
        if Path(f'/proc/{child}').exists():
            os.kill(child, signal.SIGKILL)
    process.wait()


def test_a_node_that_fails_ends_the_others_with_one_message(config, start_node, tmp_path):
    work, nodes = tmp_path / 'work', []
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', config, 1, '--work-dir', work, *OPTIONS]
    shared = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=free_port())
    for rank in range(2):
        nodes.append(start_node(rank, command, NODE_RANK=str(rank), **shared))
    wait_for(lambda: lines(work) >= 5, MINUTES, 'training')
    end_node(nodes[1])
    assert nodes[0].wait(timeout=60) != 0
    log = (tmp_path / 'node_0.log').read_text()
    assert 'error: another process of this run ended' in log and '--resume' in log, log[-3000:]


@pytest.fixture
def hosts():
    if shutil.which('ip') is None:
        pytest.skip('no ip: apt-get install iproute2')
    with ExitStack() as stack:
        try:
            made = stack.enter_context(two_hosts())
        except OSError as error:
            pytest.skip(f'no network namespaces here: {error}')
        yield made


def test_two_hosts_train_test_and_end_together(hosts, config, start_node, tmp_path):
    """Each has a network of its own, with a cable to the other."""

    def start(script, *args):
        command = ['bash', ROOT / 'tools' / script, config, *args]
        return [
            start_node(rank, [*prefix, *command], **variables)
            for rank, (prefix, variables) in enumerate(hosts)
        ]

    def log():
        return (tmp_path / 'node_0.log').read_text()[-3000:]

    work = tmp_path / 'work'
    options = [*OPTIONS, 'train_cfg.max_iters=6', 'train_cfg.val_interval=6']
    nodes = start('dist_train.sh', 1, '--work-dir', work, *options)
    assert [node.wait(timeout=MINUTES) for node in nodes] == [0, 0], log()
    nodes = start('dist_test.sh', work / 'iter_6.pth', 1, '--work-dir', work)
    assert [node.wait(timeout=MINUTES) for node in nodes] == [0, 0], log()
    run_tool('test', config, work / 'iter_6.pth', '--work-dir', tmp_path / 'one')
    metrics = [json.loads((w / 'test_metrics.json').read_text()) for w in (work, tmp_path / 'one')]
    assert metrics[0]['mIoU'] == pytest.approx(metrics[1]['mIoU'])

    nodes = start('dist_train.sh', 1, '--work-dir', tmp_path / 'cut', *OPTIONS)
    wait_for(lambda: lines(tmp_path / 'cut') >= 5, MINUTES, 'training')
    end_node(nodes[1])
    assert nodes[0].wait(timeout=60) != 0
    assert 'error: another process of this run ended' in log()


def test_a_node_that_is_restarted_joins_again_and_the_run_resumes(config, start_node, tmp_path):
    work = tmp_path / 'work'
    command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1']
    command += ['--max-restarts=3', '--rdzv-backend=c10d', '--rdzv-id=run']
    command += [f'--rdzv-endpoint=127.0.0.1:{free_port()}']
    script = [ROOT / 'tools' / 'train.py', config, '--launcher', 'pytorch']
    script += ['--work-dir', work, '--resume', *OPTIONS]
    hosts = [*command, '--rdzv-conf=is_host=1', *script]  # of what the agents agree by
    joins = [*command, '--rdzv-conf=is_host=0', *script]
    # The first agent would publish where its shared store is in the first round alone.
    own_store = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
    first, second = start_node(0, hosts, **own_store), start_node(1, joins, **own_store)
    wait_for(lambda: (work / 'iter_20.pth').is_file(), MINUTES, 'checkpoint')
    end_node(second)
    second = start_node(1, joins, **own_store)
    log = tmp_path / 'node_0.log'
    assert first.wait(timeout=MINUTES) == 0, log.read_text()[-3000:]
    assert second.wait(timeout=60) == 0
    assert weights(work)
    assert 'resumed epoch' in ''.join(path.read_text() for path in work.glob('*/*.log'))
