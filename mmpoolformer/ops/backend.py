"""Where the Triton kernels may run, and the module that holds them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from types import ModuleType

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.torch_version import TorchVersion

from ..utils.errors import one_line

# ``0`` leaves all kernels out, ``all`` has every one run that passes its first use.
SWITCH = 'MMPOOLFORMER_TRITON'
# Operations whose kernels only run where their switch is ``1``, or where a GPU has run them under
# compute-sanitizer: a read or write outside of a tensor cannot be caught.
OPT_IN = {'channel_mlp': 'MMPOOLFORMER_TRITON_MLP'}
if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # before torch 2.3
    is_compiling = torch._utils.is_compiling

_kernels: ModuleType | None = None
_is_loaded = False


def is_supported(torch_version: str, hip: str | None) -> bool:
    """Whether the kernels are for this torch.

    Earlier ones lack ``torch.mm(out_dtype=)``, properties of the chip and parts of custom ops.
    ROCm's tensors say ``is_cuda``; its Triton is another one.
    """
    return TorchVersion(torch_version) >= (2, 8) and hip is None


SUPPORTED = is_supported(torch.__version__, torch.version.hip)


def may_run(x: Tensor) -> bool:
    """Whether the kernels are for ``x``: on a CUDA device, at most float32."""
    return SUPPORTED and on_cuda(x) and x.dtype != torch.float64


def on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def reads_measurements() -> bool:
    """Whether the environment leaves it to what was measured on the device."""
    return os.environ.get(SWITCH) not in ('0', 'all')


def is_switched_on(
    name: str,
    measured: Callable[[], bool | None] = lambda: None,
    is_wrong: Callable[[], bool] = lambda: False,
) -> bool:
    """Whether the kernels of an operation are to run.

    Args:
        name: The operation.
        measured: Asked where the environment leaves it open: whether they pay, ``None`` if
            that is not known.
        is_wrong: Asked where they are switched on one by one: whether they were found wrong.
    """
    if not reads_measurements():
        return os.environ[SWITCH] == 'all'
    if name in OPT_IN and os.environ.get(OPT_IN[name]) == '1':
        return not is_wrong()
    pays = measured()
    return name not in OPT_IN if pays is None else pays


def load() -> bool:
    """Import the Triton operations, once; whether they are there."""
    global _kernels, _is_loaded
    if not _is_loaded:
        _is_loaded = True
        try:
            from . import triton

            _kernels = triton
        except Exception as error:  # what else a Triton of another version does not have
            warn(f'PyTorch computes everything: Triton cannot be used, {one_line(error)}')
    return _kernels is not None


def kernels() -> ModuleType:
    """The Triton operations, after :func:`load`."""
    return _kernels


def warn(message: str) -> None:
    """Log what is slower than it could be, and how to be told no more."""
    message = f'{message}. The numbers are the same. {SWITCH}=0 leaves Triton out in silence'
    print_log(message, logger='current', level=logging.WARNING)
