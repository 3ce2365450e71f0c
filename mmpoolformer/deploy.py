"""Make a trained model ready for inference."""

from __future__ import annotations

import ctypes

import torch
from torch import nn


def switch_to_deploy(model: nn.Module) -> int:
    """Put a model in evaluation mode and fold every part of it that can be folded.

    Calls ``switch_to_deploy()`` of each part that has it, as mmyolo's hook of that name
    does: the blocks of our backbones, and other libraries' re-parametrised layers.

    Returns:
        How many parts were folded.
    """
    model.eval()
    parts = [module for module in model.modules() if hasattr(module, 'switch_to_deploy')]
    for part in parts:
        part.switch_to_deploy()
    return len(parts)


def compile_for_inference(module: nn.Module) -> None:
    """Compile the forward of a module with ``torch.compile``, in place.

    On the CPU the weights become constants of the compiled code, laid out for oneDNN
    and with GELU and the residual inside the convolutions; later changes of the weights
    are not seen. The process keeps the memory that it frees from then on: glibc would
    return it after every image, and page faults would cost a third of the time.

    It takes effect under ``torch.no_grad()``, at the first call, which takes a while. Image
    sizes may change from call to call.
    """
    module.forward = torch.compile(module.forward)
    if next(module.parameters()).device.type == 'cpu':
        import torch._inductor.config as inductor

        module.forward = inductor.patch(freezing=True)(module.forward)
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Keep freed memory in the process, where the C library is glibc."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
