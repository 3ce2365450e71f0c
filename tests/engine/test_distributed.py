"""Two gloo processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import (
    CONFIGS,
    ROOT,
    free_port,
    run_tool,
    start_tool,
    tool_error,
    train_options,
    write_tiny_config,
)
from mmengine.config import Config

from mmpoolformer.engine.distributed import VARIABLES, prepare_cpu

DDP_STEP = """
import torch
import torch.distributed as dist
from mmpoolformer import PoolFormer

dist.init_process_group('gloo')
torch.set_num_threads(1)
tiny = dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))
for out_indices in [(0, 1, 2, 3), (1, 2, 3), (0, 1)]:
    model = torch.nn.parallel.DistributedDataParallel(
        PoolFormer(tiny, out_indices=out_indices), find_unused_parameters=False
    )
    for step in range(2):  # an unused parameter is reported by the second forward pass
        torch.manual_seed(10 * step + dist.get_rank())
        sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for parameter in model.parameters():
        mean = parameter.grad.clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(parameter.grad, mean / 2)
print('steps done')
"""


def torchrun(*args, cwd):
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--master_port=0', '--standalone', *map(str, args)]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_no_parameter_is_unused_under_ddp(tmp_path):
    script = tmp_path / 'step.py'
    script.write_text(DDP_STEP)
    run = torchrun(script, cwd=tmp_path)
    assert run.stdout.count('steps done') == 2, run.stderr


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_dist_scripts_name_their_arguments(script):
    run = subprocess.run(['bash', ROOT / 'tools' / script], capture_output=True, text=True)
    assert run.returncode == 2 and 'usage:' in run.stderr


@pytest.mark.parametrize(
    'script, args, inner',
    [
        ('slurm_train.sh', ['part', 'job', 'c.py'], ['train.py', 'c.py']),
        ('slurm_test.sh', ['part', 'job', 'c.py', 'c.pth'], ['test.py', 'c.py', 'c.pth']),
    ],
)
def test_slurm_scripts_call_srun(script, args, inner, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    run = subprocess.run(
        ['bash', ROOT / 'tools' / script, *args, '--work-dir', 'a b'],
        env=dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4', GPUS_PER_NODE='2'),
        capture_output=True,
        text=True,
        check=True,
    )
    words = run.stdout.splitlines()
    assert {'part', '--job-name=job', '--ntasks=4', '--ntasks-per-node=2', '--gres=gpu:2'} <= {
        *words
    }
    inner[0] = str(ROOT / 'tools' / inner[0])
    assert words[-len(inner) - 4 :] == [*inner, '--launcher', 'slurm', '--work-dir', 'a b']


def test_dist_train_and_dist_test_run_on_two_cpus(ade_root, tmp_path):
    config = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'
    options = train_options(config, ade_root)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=free_port())
    env['CUDA_VISIBLE_DEVICES'] = ''

    def call(*args):
        run = subprocess.run(
            list(map(str, ['bash', *args, '--work-dir', tmp_path, *options])),
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-4000:]

    call(ROOT / 'tools' / 'dist_train.sh', config, 2)
    call(ROOT / 'tools' / 'dist_test.sh', config, tmp_path / 'iter_2.pth', 2)
    # Two processes evaluate the whole set once, as one process does. (The validation in training
    # is no reference: without a GPU each process has batch norm statistics of its own.)
    run_tool('test', config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'one', *options)
    metrics = [
        json.loads((d / 'test_metrics.json').read_text()) for d in (tmp_path, tmp_path / 'one')
    ]
    assert metrics[0]['mIoU'] == metrics[1]['mIoU']
    assert metrics[0]['aAcc'] == metrics[1]['aAcc']


@pytest.mark.parametrize('asked', [None, True])
def test_ddp_on_cpus_looks_for_unused_parameters_if_told_and_sends_no_buffers(asked, monkeypatch):
    for name in VARIABLES['pytorch']:
        monkeypatch.setenv(name, '0')
    monkeypatch.setenv('MASTER_PORT', '1')
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    cfg = Config(dict(launcher='pytorch', model=dict()))
    if asked:
        cfg.find_unused_parameters = asked
    prepare_cpu(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=bool(asked),
    )


RECORD_LOSS = """
import json
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class RecordLoss(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rank = os.environ.get('RANK', '0')
        with open(f'{runner.work_dir}/loss_{rank}.txt', 'a') as file:
            file.write(f'{outputs["loss"].item()!r}\\n')

    def after_train(self, runner):
        total = sum(p.double().abs().sum().item() for p in runner.model.parameters())
        rank = os.environ.get('RANK', '0')
        with open(f'{runner.work_dir}/parameters_{rank}.txt', 'w') as file:
            file.write(repr(total))
"""
# Nothing random, and norms that do not look across images.
EXACT = """
model = dict(
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(dropout_ratio=0.0, norm_cfg=dict(_delete_=True, type='GN', num_groups=4)),
)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
train_pipeline += [dict(type='PackSegInputs')]
train_dataloader = dict(batch_size={batch_size}, dataset=dict(pipeline=train_pipeline))
custom_imports = dict(imports=['mmpoolformer', 'record_loss'])
custom_hooks = [dict(type='RecordLoss')]
default_hooks = dict(checkpoint=dict(interval=100))
"""


FSDP = """
runner_type = 'FlexibleRunner'
strategy = dict(type='FSDPStrategy', model_wrapper=dict(use_orig_params=True))
"""


@pytest.fixture(scope='module')
def exact(digits_root, tmp_path_factory):
    """Write configs whose numbers do not depend on how their batches are spread."""
    folder = tmp_path_factory.mktemp('exact')
    (folder / 'record_loss.py').write_text(RECORD_LOSS)
    base = write_tiny_config(folder, 'by_iteration', digits_root, iters=20)

    def write(name, batch_size, more=''):
        path = folder / f'{name}.py'
        text = EXACT.format(batch_size=batch_size) + more
        path.write_text(f'_base_ = {str(base)!r}\n{text}')
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(folder))  # for processes, and for this one:
        patch.syspath_prepend(folder)
        patch.setenv('OMP_NUM_THREADS', '1')
        yield write


@pytest.fixture(scope='module')
def one(exact):
    """The work dir of a run in one process."""
    config = exact('one', batch_size=4)
    run_tool('train', config, '--work-dir', config.with_suffix(''))
    return config.with_suffix('')


@pytest.fixture(scope='module')
def two(exact):
    """Train in two processes with half the batch each, once for each launcher."""
    done = {}

    def train(launcher):
        if launcher not in done:
            config = exact(launcher, batch_size=2, more=FSDP if launcher == 'fsdp' else '')
            done[launcher] = config.with_suffix('')
            spread(config, done[launcher], launcher)
        return done[launcher]

    return train


def spread(config, work_dir, launcher, *options):
    """Train in two processes that have from their launcher what it would give them."""
    args = [config, '--work-dir', work_dir, *options]
    if launcher == 'pytorch':
        script = ROOT / 'tools' / 'train.py'
        run = torchrun(script, *args, '--launcher', launcher, cwd=work_dir.parent)
        assert run.returncode == 0, run.stderr[-3000:]
        return
    common = dict(MASTER_PORT=free_port())
    if launcher == 'slurm':
        common['SLURM_NODELIST'] = 'node[1-2]'
        scontrol = work_dir.parent / 'bin' / 'scontrol'
        scontrol.parent.mkdir()
        scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && echo localhost\n')
        scontrol.chmod(0o755)
        common['PATH'] = f'{scontrol.parent}:{os.environ["PATH"]}'
    else:
        common['MASTER_ADDR'] = '127.0.0.1'
    started = []
    for rank in range(2):
        env = dict(zip(RANK_NAMES[launcher], (str(rank), '2', str(rank))), **common)
        ranks = ['--launcher', {'fsdp': 'pytorch'}.get(launcher, launcher)]
        ranks += ['--local-rank', rank] if launcher == 'fsdp' else []
        log = work_dir.with_suffix(f'.{rank}.log')
        started.append((start_tool('train', *args, *ranks, log=log, env=env), log))
    for process, log in started:
        process.join()
        assert process.exitcode == 0, log.read_text()[-3000:]


RANK_NAMES = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    'fsdp': ('RANK', 'WORLD_SIZE'),
}


def losses(work_dir, rank=0):
    lines = (work_dir / f'loss_{rank}.txt').read_text().splitlines()
    return torch.tensor([float(line) for line in lines], dtype=torch.float64)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_two_processes_train_as_one_does(launcher, one, two):
    spread = two(launcher)
    mean = (losses(spread, 0) + losses(spread, 1)) / 2
    assert len(mean) == 20
    # To float32's rounding, until a ReLU takes a rounded zero for another side of its bend.
    torch.testing.assert_close(mean[:9], losses(one)[:9], rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, losses(one), rtol=5e-4, atol=0)
    parameters = [(spread / f'parameters_{rank}.txt').read_text() for rank in (0, 1)]
    assert parameters[0] == parameters[1]
    metrics = [json.loads((run / 'val_metrics.json').read_text()) for run in (one, spread)]
    assert metrics[1]['mIoU'] == pytest.approx(metrics[0]['mIoU'], abs=0.2)


@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='torch 2.1 has no FSDP on CPUs')
def test_fsdp_trains_as_ddp_does(two):
    torch.testing.assert_close(losses(two('fsdp')), losses(two('pytorch')), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('launcher, variable', [('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM')])
def test_a_launcher_that_did_not_start_the_process_is_named(
    launcher, variable, exact, tmp_path, capsys
):
    args = ['--launcher', launcher, '--work-dir', tmp_path]
    assert variable in tool_error(capsys, 'train', exact('alone', batch_size=4), *args)


EACH_ITS_OWN = """
custom_imports = dict(imports=['mmpoolformer', 'record_loss'])
custom_hooks = [dict(type='RecordLoss')]
randomness = dict(seed=0, diff_rank_seed=True)
"""


def test_every_process_goes_on_with_its_own_random_numbers(exact, tmp_path):
    base = exact('base', batch_size=2).with_name('tiny.py')  # crops, flips, stochastic depth
    config = tmp_path / 'random.py'
    config.write_text(f'_base_ = {str(base)!r}\n{EACH_ITS_OWN}')
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    iterations = '--cfg-options', 'train_cfg.max_iters=6'
    spread(config, whole, 'mpi', *iterations)
    spread(config, resumed, 'mpi', '--resume', whole / 'iter_4.pth', *iterations)
    for rank in range(2):
        assert len(losses(whole, rank)) == 6
        torch.testing.assert_close(losses(resumed, rank), losses(whole, rank)[4:])
    assert not torch.equal(losses(whole, 0), losses(whole, 1))
