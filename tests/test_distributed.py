"""Two gloo processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import CONFIGS, ROOT, run_tool, train_options

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
