"""Make a trained model ready for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .models import MetaFormer
from .models.norms import is_over_channels
from .utils.memory import keep_freed_memory


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


def compile_for_inference(module: nn.Module, mode: str | None = None) -> None:
    """Compile the forward of a module with ``torch.compile``, in place.

    On the CPU the weights become constants of the compiled code, laid out for oneDNN
    and with GELU and the residual inside the convolutions; later changes of the weights
    are not seen. The process keeps the memory that it frees from then on
    (:mod:`mmpoolformer.utils.memory`).

    It takes effect under ``torch.no_grad()``, at the first call, which takes a while. Image
    sizes may change from call to call; backbones with channel-wise norms are compiled for each
    size, up to PyTorch's limit (eight), and after that run as they were.

    Args:
        mode: That of ``torch.compile``. With ``'reduce-overhead'`` a CUDA device replays one
            CUDA graph instead of launching every kernel, which pays for small images
            and batches. Each size is recorded by itself, and the next call overwrites what
            this one returned: ``clone()`` what you keep.

    Raises:
        RuntimeError: There is no such mode; the message names those that there are.
    """
    # In those, Inductor takes wrong strides for sizes that change (torch 2.13).
    by_size = any(map(is_over_channels, module.modules()))
    module.forward = torch.compile(module.forward, mode=mode, dynamic=False if by_size else None)
    if next(module.parameters()).device.type == 'cpu':
        import torch._inductor.config as inductor

        module.forward = inductor.patch(freezing=True)(module.forward)
        keep_freed_memory()
    module.forward = _Compiled(module.forward)


class _Compiled:
    """A compiled forward, which computes with the weights of the module that it was made of."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        raise RuntimeError(
            'a module cannot be copied or saved after compile_for_inference, as the copy would '
            'compute with the weights of the original: copy it first, and save its state_dict()'
        )


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Let the backbones in a model compute operation by operation what the paper writes."""
    backbones = [module for module in model.modules() if isinstance(module, MetaFormer)]
    before = [backbone.token_mixing for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.token_mixing = 'plain'
        yield
    finally:
        for backbone, token_mixing in zip(backbones, before):
            backbone.token_mixing = token_mixing
