"""Where the Triton kernels run."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

try:
    # Before torch 2.4 there are no custom ops; without a GPU nothing to import Triton for.
    if not hasattr(torch.library, 'custom_op') or not torch.cuda.is_available():
        raise ImportError
    from . import triton_ops as _triton_ops
except ImportError:
    _triton_ops = None


def triton_ops(x: Tensor) -> ModuleType | None:
    """The Triton operations if they cover ``x``: on a CUDA device, at most float32."""
    return _triton_ops if x.is_cuda and x.dtype != torch.float64 else None
