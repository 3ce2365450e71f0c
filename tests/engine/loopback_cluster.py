"""A slurm cluster of this machine alone, for as long as a test needs it."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

from helpers import free_port

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'scancel', 'scontrol', 'squeue')
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
PARTITION = 'part'
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm_cluster(folder):
    """Start munge and slurm on loopback; yield the environment of their commands.

    The node has two GPUs by name, so that the scripts run as they are.
    """
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    for name in ('gpu0', 'gpu1'):
        (folder / name).touch()
    key = folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    names = dict(
        folder=folder,
        host=socket.gethostname().split('.')[0],
        user=os.environ.get('USER', 'root'),
        controller_port=free_port(),
        port=free_port(),
        partition=PARTITION,
    )
    (folder / 'slurm.conf').write_text(CONFIG.format(**names))
    (folder / 'gres.conf').write_text(f'AutoDetect=off\nName=gpu File={folder}/gpu[0-1]\n')
    env = dict(os.environ, SLURM_CONF=str(folder / 'slurm.conf'))
    files = {'key-file': key, 'socket': folder / 'munge.sock', 'pid-file': folder / 'munged.pid'}
    files |= {'log-file': folder / 'munged.log', 'seed-file': folder / 'munge.seed'}
    munge = ['munged', '--foreground', '--force']
    munge += [f'--{name}={path}' for name, path in files.items()]
    started = []
    try:
        for command in (munge, ['slurmctld', '-D'], ['slurmd', '-D']):
            log = (folder / f'{command[0]}.out').open('w')
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            time.sleep(1)
        idle = ['sinfo', '--noheader', '--format=%t']
        wait_for(lambda: 'idle' in output(idle, env), 60, 'an idle node')
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'no {what} after {seconds} seconds'
        time.sleep(0.2)


def output(command, env):
    run = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    return run.stdout + run.stderr


def job_field(job, name, env):
    """What ``scontrol show job`` says of a job."""
    fields = output(['scontrol', 'show', 'job', job], env).split()
    return dict(field.split('=', 1) for field in fields if '=' in field).get(name)


@contextmanager
def two_hosts():
    """Two network namespaces with a cable between them, as two machines have it.

    Yields:
        For each, the command that runs another one in it, and the variables that it needs.

    Raises:
        OSError: This system does not let one make them.
    """
    names = [f'mmpoolformer-{os.getpid()}-{side}' for side in 'ab']
    links = [f'mmp{os.getpid() % 100_000}{side}' for side in 'ab']
    try:
        for name in names:
            _ip('netns', 'add', name)
        _ip('link', 'add', links[0], 'type', 'veth', 'peer', 'name', links[1])
        hosts = []
        for number, (name, link) in enumerate(zip(names, links), 1):
            _ip('link', 'set', link, 'netns', name)
            _ip('-n', name, 'addr', 'add', f'10.231.77.{number}/24', 'dev', link)
            for device in ('lo', link):
                _ip('-n', name, 'link', 'set', device, 'up')
            variables = dict(GLOO_SOCKET_IFNAME=link, NODE_RANK=str(number - 1), NNODES='2')
            variables.update(MASTER_ADDR='10.231.77.1', PORT='29511')
            hosts.append((['ip', 'netns', 'exec', name], variables))
        yield hosts
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True)


def _ip(*words):
    run = subprocess.run(['ip', *words], capture_output=True, text=True)
    if run.returncode:
        raise OSError(f'ip {" ".join(words)}: {run.stderr.strip()}')
