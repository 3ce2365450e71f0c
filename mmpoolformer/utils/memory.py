"""What glibc does with freed memory, which on the CPU costs as much as the norms and the pooling.

Memory that malloc returned to the system comes back as page faults. glibc returns
what is free at the end of its heap once that exceeds twice the largest block that it
has seen freed; feature maps of a 512×512 image just exceed it. Other C libraries are
left alone.

What is set here holds for the whole process, so no model does it by itself. The launchers call
:func:`reuse_freed_memory` to test and predict and, on machines without a GPU,
:func:`keep_freed_memory` to train, as :func:`~mmpoolformer.deploy.compile_for_inference` does.
Whoever has set malloc in the environment (:data:`CHOSEN_BY`) is left with that. A program that
uses the backbones as a library calls one of them once, if it wants their speed on the CPU::

    from mmpoolformer.utils.memory import reuse_freed_memory

    reuse_freed_memory()
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import torch

LARGEST_HEAP_BLOCK = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc
# Variables with which a user sets glibc's malloc.
CHOSEN_BY = (
    'GLIBC_TUNABLES',
    'MALLOC_TRIM_THRESHOLD_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_MMAP_MAX_',
)


@cache
def reuse_freed_memory() -> None:
    """Let malloc keep up to 64 MiB of freed memory for the next image.

    Frees one block of nearly the largest size that malloc learns from; its pages are
    never touched. Does nothing from the second call on.
    """
    if _is_ours_to_set():
        torch.empty(LARGEST_HEAP_BLOCK - 2**16, dtype=torch.uint8, device='cpu')


def keep_freed_memory() -> None:
    """Let malloc keep all freed memory in the process, for tensors of any size."""
    if _is_ours_to_set():
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def _is_ours_to_set() -> bool:
    return platform.libc_ver()[0] == 'glibc' and not any(name in os.environ for name in CHOSEN_BY)
