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
from mmpoolformer.utils.memory import reuse_freed_memory

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
FAULTS = """
import resource, runpy, sys, torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        maps = [torch.ones(5 * 2**20) for _ in range(3)]
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
without = faults()
runpy.run_path(sys.argv[1])[sys.argv[2]]()
faults()
print(without, faults())
"""
# Of one of the three maps, 20 MiB each.
PAGES_OF_A_MAP = 20 * 2**20 // resource.getpagesize()

of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='it knows the malloc of glibc'
)


def count_faults(function, **environment):
    """Page faults of the same work before and after a function was called."""
    run = subprocess.run(
        [sys.executable, '-c', FAULTS, ROOT / 'mmpoolformer' / 'utils' / 'memory.py', function],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, **environment),
    )
    return map(int, run.stdout.split())


@of_glibc
@pytest.mark.parametrize('function', ['reuse_freed_memory', 'keep_freed_memory'])
def test_memory_that_is_kept_does_not_come_back_as_page_faults(function):
    without, kept = count_faults(function)
    assert without > PAGES_OF_A_MAP
    assert kept < PAGES_OF_A_MAP


@of_glibc
@pytest.mark.parametrize('function', ['reuse_freed_memory', 'keep_freed_memory'])
def test_malloc_that_the_user_has_set_is_left_alone(function):
    threshold = str(2**20)  # set, glibc does not raise it
    _, kept = count_faults(function, MALLOC_TRIM_THRESHOLD_=threshold)
    assert kept > PAGES_OF_A_MAP
