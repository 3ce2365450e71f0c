"""Several processes, and training without GPUs, which mmengine takes for granted."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..utils.config_tree import type_of, unsync_batch_norms
from ..utils.errors import LaunchError

# What the launchers call rank, number of processes and rank on the machine.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
LOST = ('Connection closed by peer', 'Connection reset by peer', 'gloo/transport')
DEFAULT_PORT = '29500'  # mmengine's


def check_launcher(launcher: str) -> None:
    """Check that this process was started by the launcher that it was told.

    Raises:
        LaunchError: The launcher's variables are not set.
    """
    missing = [name for name in VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise LaunchError(
            f'--launcher {launcher}: {", ".join(missing)} not set, so it did not start this '
            'process: see tools/dist_train.sh and tools/slurm_train.sh'
        )
    if launcher == 'mpi' and 'MASTER_ADDR' not in os.environ:
        raise LaunchError('--launcher mpi: export MASTER_ADDR, the host name of the first process')


def is_first(launcher: str) -> bool:
    """Whether this is the process that writes, before the processes know each other."""
    return launcher == 'none' or os.environ[VARIABLES[launcher][0]] == '0'


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error says that another process is not there any more, for gloo and NCCL."""
    kinds = tuple(
        getattr(torch.distributed, name)
        for name in ('DistBackendError', 'DistNetworkError')
        if hasattr(torch.distributed, name)
    )
    return isinstance(error, kinds) or any(word in str(error) for word in LOST)


def prepare_cpu(cfg: Config) -> None:
    """Start the gloo process group and set the config up for it.

    mmengine leaves an existing process group as it is, so it never calls
    ``torch.cuda.set_device``; the model wrapper must not get a device either.

    Args:
        cfg: Config with ``launcher`` ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        LaunchError: slurm does not say which machine is the first.
    """
    _export(cfg.launcher)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    strategy = cfg.get('strategy') or {}
    if strategy.get('type') == 'FSDPStrategy':
        strategy['model_wrapper'] = dict(strategy.get('model_wrapper') or {}, device_id='cpu')
    unsync_batch_norms(cfg.model)


def leave_out_amp(cfg: Config) -> None:
    """Train in float32 where mmengine has no mixed precision, which a config may ask for."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_of(wrapper) != 'AmpOptimWrapper' or get_device() not in ('cpu', 'mps'):
        return
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    wrapper['type'] = 'OptimWrapper'
    if is_first(cfg.launcher):
        print(
            "warning: no CUDA GPU: trains in float32, as mmengine's AmpOptimWrapper needs one; so "
            'does the config.py that this run leaves',
            file=sys.stderr,
        )


def _export(launcher: str) -> None:
    """Give torch the launcher's variables under the names that it reads."""
    for name, variable in zip(VARIABLES['pytorch'], VARIABLES[launcher]):
        os.environ[name] = os.environ[variable]
    os.environ.setdefault('MASTER_PORT', DEFAULT_PORT)
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostnames', os.environ.get('SLURM_NODELIST', '')]
        try:
            hosts = subprocess.run(command, check=True, capture_output=True, text=True)
            os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise LaunchError(
                '--launcher slurm: scontrol does not name the first machine; export MASTER_ADDR'
            ) from error
