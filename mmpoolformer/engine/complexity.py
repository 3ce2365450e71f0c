"""Parameters, multiply-accumulates and memory of a model at one image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import plain
from ..utils.errors import last_line

aten = torch.ops.aten
PARTS = ('backbone', 'neck')  # a detector calls its heads in ways that no hook sees


class Complexity(NamedTuple):
    """What a model takes for one image.

    Attributes:
        parameters: Numbers in the ``'backbone'``, the ``'neck'`` and all ``'heads'``, where there
            are such parts, and in the ``'whole'``.
        macs: Multiply-accumulates of convolutions, matrix products and attention, likewise.
        weight_bytes: Size of parameters and buffers.
        peak_bytes: Most that maps take at one time of inference, the image among them.
        uncounted: Modules with mmcv's own kernels, and how many: what those do is not in ``macs``.
        reason: Why only the backbone was counted; empty if all of the model was.
    """

    parameters: dict[str, int]
    macs: dict[str, int]
    weight_bytes: int
    peak_bytes: int
    uncounted: dict[str, int]
    reason: str = ''


def measure(model: nn.Module, images: Tensor, data_samples: list | None = None) -> Complexity:
    """Run a backbone, or a detector or segmentor of mmdet or mmseg, and count.

    MACs are those of the plain definition: fused blocks compute the same products, which no
    counter sees inside of a GPU's kernels. Memory is that of the model as it is.

    Args:
        model: The model, in evaluation mode.
        images: ``[1, C, H, W]``, as the data preprocessor would pass them on.
        data_samples: What detectors want to know about the image.

    Raises:
        ValueError: The backbone does not take such images.
    """
    forward, peak, reason = _run(model, images, data_samples)
    with plain(model), _frozen(model), torch.no_grad():
        macs = _count_macs(model, forward)
    parameters = {name: _size(part) for name, part in _parts(model).items()}
    state = [*model.parameters(), *model.buffers()]
    return Complexity(
        _with_heads(parameters, _size(model)),
        macs,
        sum(tensor.nbytes for tensor in state),
        peak,
        dict(Counter(_uncounted(model))),
        reason,
    )


class PeakMemory(TorchDispatchMode):
    """The most bytes that the tensors made in a block take at one time."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was made before."""
        storage = tensor.untyped_storage()
        self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if tensor.untyped_storage()._cdata not in known:  # neither a view nor a weight
                self.add(tensor)
        return out


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _run(
    model: nn.Module, images: Tensor, data_samples: list | None
) -> tuple[Callable[[], object], int, str]:
    """Run as much of a model as takes images without labels.

    Returns:
        How to run it again, its peak of memory, and why it is not all of the model.
    """
    ways = [partial(model, images)]
    if hasattr(model, 'backbone'):
        modes = [partial(model, images, data_samples, mode=mode) for mode in ('tensor', 'predict')]
        ways = [*modes, partial(model.backbone, images)]
    problem = ''
    for forward in ways:
        memory = PeakMemory()
        try:
            with memory, torch.no_grad():
                memory.add(images)
                forward()
        except Exception as error:  # whatever the heads of other people raise
            if forward is ways[-1]:
                raise
            problem = problem or f'{type(error).__name__}: {last_line(error)}'
        else:
            return forward, memory.peak, problem if forward is ways[-1] else ''


def _count_macs(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Multiply-accumulates of the whole and of the parts that are called as modules."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    parts, handles = Counter(), []

    def enter(name):
        parts[name] -= counter.get_total_flops()

    def leave(name):
        parts[name] += counter.get_total_flops()

    for name, part in _parts(model).items():
        handles += [
            part.register_forward_pre_hook(lambda *_, name=name: enter(name)),
            part.register_forward_hook(lambda *_, name=name: leave(name)),
        ]
    try:
        with counter:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    counts = _with_heads(parts, counter.get_total_flops())
    return {name: flops // 2 for name, flops in counts.items()}


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    parts = {name: getattr(model, name, None) for name in PARTS}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _with_heads(parts: dict[str, int], whole: int) -> dict[str, int]:
    heads = {'heads': whole - sum(parts.values())} if parts else {}
    return {**parts, **heads, 'whole': whole}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient, for which the counter would look."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Both products of attention: queries by keys, and the result by values."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _mha_flops(query, key, value, width, *args, out_shape=None, **kwargs) -> int:
    """The four projections and both products of ``nn.MultiheadAttention``."""
    batch, queries, _ = query
    return 2 * batch * queries * width * (4 * width + 2 * key[1])


# Kernels that do it all at once, for which PyTorch has no formula.
KERNELS = {
    '_scaled_dot_product_flash_attention_for_cpu': _attention_flops,
    '_native_multi_head_attention': _mha_flops,
}
ATTENTION = {getattr(aten, name): flops for name, flops in KERNELS.items() if hasattr(aten, name)}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _uncounted(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        if type(module).__module__.startswith('mmcv.ops'):
            yield type(module).__name__
