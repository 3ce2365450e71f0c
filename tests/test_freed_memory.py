"""What the process does with freed memory is chosen by whoever starts it, not by a model."""

import platform
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


@pytest.mark.parametrize('phase', ['train', 'test'])
def test_launchers_let_the_process_keep_freed_memory(phase, monkeypatch):
    class Called(Exception):
        pass

    def called():
        raise Called

    monkeypatch.setattr(launch, 'reuse_freed_memory', called)
    with pytest.raises(Called):
        launch.build_runner(Config(), phase)


# Together more than twice the largest of them, so that glibc by itself gives them back.
FAULTS = """
import resource, torch
from mmpoolformer.utils.memory import reuse_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        maps = [torch.ones(18 * 2**20, dtype=torch.uint8) for _ in range(3)]
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
without = faults()
reuse_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='it knows the malloc of glibc')
def test_memory_that_is_kept_does_not_come_back_as_page_faults():
    run = subprocess.run(
        [sys.executable, '-c', FAULTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    without, kept = map(int, run.stdout.split())
    assert kept < without / 5
