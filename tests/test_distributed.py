"""Two gloo processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, ROOT, run_tool, train_options, write_tiny_config

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
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=port)
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


@pytest.fixture
def exact(digits_root, tmp_path, monkeypatch):
    """Write a config whose numbers do not depend on how its batches are spread."""
    (tmp_path / 'record_loss.py').write_text(RECORD_LOSS)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))  # for processes, and for this one:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    base = write_tiny_config(tmp_path, 'by_iteration', digits_root, iters=20)

    def write(name, batch_size, more=''):
        path = tmp_path / f'{name}.py'
        text = EXACT.format(batch_size=batch_size) + more
        path.write_text(f'_base_ = {str(base)!r}\n{text}')
        return path

    return write


def spread(config, work_dir, launcher='pytorch'):
    """Train in two processes, started as a launcher would start them."""
    command = [ROOT / 'tools' / 'train.py', config, '--work-dir', work_dir, '--launcher', launcher]
    if launcher == 'pytorch':
        run = torchrun(*command, cwd=work_dir.parent)
        assert run.returncode == 0, run.stderr[-3000:]
        return
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(2):
        names = {
            'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
            'mpi': (
                'OMPI_COMM_WORLD_RANK',
                'OMPI_COMM_WORLD_SIZE',
                'OMPI_COMM_WORLD_LOCAL_RANK',
            ),
        }[launcher]
        env = dict(zip(names, (str(rank), '2', str(rank))), MASTER_PORT=port)
        if launcher == 'mpi':
            env['MASTER_ADDR'] = '127.0.0.1'
        else:
            env['SLURM_NODELIST'] = 'node[1-2]'
            scontrol = work_dir.parent / 'bin' / 'scontrol'
            scontrol.parent.mkdir(exist_ok=True)
            scontrol.write_text(
                '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && echo localhost\n'
            )
            scontrol.chmod(0o755)
            env['PATH'] = f'{scontrol.parent}:{os.environ["PATH"]}'
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**os.environ, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]


def losses(work_dir, rank=0):
    lines = (work_dir / f'loss_{rank}.txt').read_text().splitlines()
    return torch.tensor([float(line) for line in lines], dtype=torch.float64)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_two_processes_train_as_one_does(launcher, exact, tmp_path):
    run_tool('train', exact('one', batch_size=4), '--work-dir', tmp_path / 'one')
    spread(exact('two', batch_size=2), tmp_path / 'two', launcher)
    mean = (losses(tmp_path / 'two', 0) + losses(tmp_path / 'two', 1)) / 2
    assert len(mean) == 20
    torch.testing.assert_close(mean, losses(tmp_path / 'one'), rtol=1e-4, atol=1e-5)
    parameters = [(tmp_path / 'two' / f'parameters_{rank}.txt').read_text() for rank in (0, 1)]
    assert parameters[0] == parameters[1]
    metrics = [json.loads((tmp_path / n / 'val_metrics.json').read_text()) for n in ('one', 'two')]
    assert metrics[1]['mIoU'] == pytest.approx(metrics[0]['mIoU'], abs=0.2)


@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='torch 2.1 has no FSDP on CPUs')
def test_fsdp_trains_as_ddp_does(exact, tmp_path):
    fsdp = """
runner_type = 'FlexibleRunner'
strategy = dict(type='FSDPStrategy', model_wrapper=dict(use_orig_params=True))
"""
    spread(exact('ddp', batch_size=2), tmp_path / 'ddp')
    spread(exact('fsdp', batch_size=2, more=fsdp), tmp_path / 'fsdp')
    torch.testing.assert_close(
        losses(tmp_path / 'fsdp'), losses(tmp_path / 'ddp'), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('launcher, variable', [('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM')])
def test_a_launcher_that_did_not_start_the_process_is_named(launcher, variable, exact, tmp_path):
    command = [sys.executable, ROOT / 'tools' / 'train.py', exact('one', batch_size=4)]
    command += ['--launcher', launcher, '--work-dir', tmp_path]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 1 and variable in run.stderr and 'Traceback' not in run.stderr
