"""Sizes of maps that a graph leaves open, where mmdet makes tensors of them."""

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
