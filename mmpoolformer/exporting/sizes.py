"""Sizes of maps that a graph leaves open, where models reckon with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Sizes(np.ndarray):
    """The tensor of sizes that deformable attention reckons with, of ``torch.SymInt``.

    mmdet cuts maps by its elements, which a graph takes from the maps alone. It behaves as a tensor
    as far as mmdet's code goes, and becomes one where it meets another.
    """

    @classmethod
    def of_map(cls, x: Tensor) -> Sizes:
        """``torch._shape_as_tensor``."""
        out = np.empty(x.ndim, object)
        out[:] = list(x.shape)
        return out.view(cls)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.cat and all(isinstance(sizes, cls) for sizes in args[0]):
            return np.concatenate(list(args[0]), *args[1:], **(kwargs or {})).view(cls)
        as_tensors = torch.utils._pytree.tree_map_only(cls, cls.tensor, (args, kwargs or {}))
        return function(*as_tensors[0], **as_tensors[1])

    def tensor(self) -> Tensor:
        """It as a tensor of integers."""
        one = torch.ones((), dtype=torch.int64)
        return torch.stack([one * size for size in self.flat]).view(self.shape)

    def to(self, *args, **kwargs) -> Sizes:
        return self

    def view(self, *shape):
        is_shape = bool(shape) and all(isinstance(side, int) for side in shape)
        return self.reshape(shape) if is_shape else super().view(*shape)

    def new_zeros(self, shape: tuple) -> Sizes:
        return np.zeros(shape, object).view(Sizes)

    def unsqueeze(self, dim: int) -> Sizes:
        return np.expand_dims(self, dim)

    def flip(self, dims: list) -> Sizes:
        return np.flip(self, dims)


def new_tensor_of_sizes(original: Callable) -> Callable:
    """``Tensor.new_tensor`` that keeps sizes open, which PyTorch's makes numbers."""

    def new_tensor(self, data, **options):
        if isinstance(data, (tuple, list)) and any(isinstance(x, torch.SymInt) for x in data):
            data = np.array([*data, None], object)[:-1].view(Sizes)
        if not isinstance(data, Sizes):
            return original(self, data, **options)
        options = dict(dtype=self.dtype, device=self.device) | options
        return data.tensor().to(**options)

    return new_tensor


def linspace_of_sizes(original: Callable) -> Callable:
    """``torch.linspace`` of an open number of steps, which PyTorch's makes a number."""

    def linspace(start, end, steps, **options):
        if not isinstance(steps, torch.SymInt):
            return original(start, end, steps, **options)
        # A graph that leaves a size open has taken it to be no 1.
        return start + (end - start) / (steps - 1) * torch.arange(steps, **options)

    return linspace


def pooling_of_sizes(original: Callable) -> Callable:
    """``adaptive_avg_pool2d`` of open sizes, for which ONNX has no operator: weighted sums."""

    def adaptive_avg_pool2d(input, output_size):
        counts = torch.nn.modules.utils._pair(output_size)
        is_open = any(isinstance(side, torch.SymInt) for side in input.shape[2:])
        if not is_open or None in counts or all(count == 1 for count in counts):
            return original(input, output_size)
        rows, columns = (_bins(side, count, input) for side, count in zip(input.shape[2:], counts))
        return rows @ (input @ columns.T)

    return adaptive_avg_pool2d


def _bins(side: torch.SymInt, count: int, like: Tensor) -> Tensor:
    """Which positions of a side each bin is the mean of, ``[count, side]``: sums of 1."""
    position = torch.arange(side, device=like.device)
    bin = torch.arange(count, device=like.device)[:, None]
    first, last = bin * side // count, ((bin + 1) * side + count - 1) // count
    weights = ((position >= first) & (position < last)).to(like)
    return weights / weights.sum(1, keepdim=True)
