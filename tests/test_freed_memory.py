"""What the process does with freed memory is chosen by whoever starts it, not by a model."""

import os
import platform
import resource
import subprocess
import sys

import pytest
from helpers import ROOT
from mmengine.config import Config

from mmpoolformer import PoolFormer
from mmpoolformer.engine import launch
from mmpoolformer.utils.memory import CHOSEN_BY, reuse_freed_memory

TINY = dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))


def test_a_backbone_in_evaluation_mode_leaves_the_process_alone():
    reuse_freed_memory.cache_clear()
    PoolFormer(TINY).train().eval()
    assert reuse_freed_memory.cache_info().currsize == 0


@pytest.mark.parametrize(
    ('phase', 'function'), [('train', 'keep_freed_memory'), ('test', 'reuse_freed_memory')]
)
def test_launchers_let_the_process_keep_freed_memory(phase, function, monkeypatch):
    class Called(Exception):
        pass

    def called():
        raise Called

    monkeypatch.setattr(launch, function, called)
    with pytest.raises(Called):
        launch.build_runner(Config(), phase)


# The module alone: what the imports of the toolboxes free may have raised malloc's limit before.
# Blocks of malloc, not tensors: what torch allocates beside a tensor may keep its pages by chance.
FAULTS = """
import ctypes, resource, runpy, sys

functions = runpy.run_path(sys.argv[1])
for name in sys.argv[2:]:
    functions[name]()
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: of huge pages there are few
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(20 * 2**20) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 20 * 2**20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(4)][-1])
"""
PAGES_OF_A_BLOCK = 20 * 2**20 // resource.getpagesize()

of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='it knows the malloc of glibc'
)


def count_faults(*functions, **environment):
    """Page faults of the same work again, in a process that called functions before."""
    run = subprocess.run(
        [sys.executable, '-c', FAULTS, ROOT / 'mmpoolformer' / 'utils' / 'memory.py', *functions],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in CHOSEN_BY} | environment,
    )
    return int(run.stdout)


@of_glibc
def test_freed_memory_comes_back_as_page_faults():
    assert count_faults() > PAGES_OF_A_BLOCK


@of_glibc
@pytest.mark.parametrize('function', ['reuse_freed_memory', 'keep_freed_memory'])
def test_memory_that_is_kept_does_not_come_back_as_page_faults(function):
    assert count_faults(function) < PAGES_OF_A_BLOCK


@of_glibc
@pytest.mark.parametrize('function', ['reuse_freed_memory', 'keep_freed_memory'])
def test_malloc_that_the_user_has_set_is_left_alone(function):
    threshold = str(2**20)  # set, glibc does not raise it
    assert count_faults(function, MALLOC_TRIM_THRESHOLD_=threshold) > PAGES_OF_A_BLOCK
