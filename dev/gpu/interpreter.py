"""Let Triton's interpreter stand in for a GPU: tensors on the CPU pass for those on one.

``TRITON_INTERPRET=1`` must be set before Triton is imported.
"""

from types import SimpleNamespace

import torch

from mmpoolformer.ops import backend, first_use

H100 = SimpleNamespace(major=9, shared_memory_per_block_optin=227 * 1024)


def stand_in(patch=setattr) -> None:
    """Run the kernels of tensors on the CPU, as an H100 would take them.

    Args:
        patch: Called as ``setattr``; ``monkeypatch.setattr`` takes it back.
    """
    patch(backend, 'on_cuda', lambda x: True)
    patch(torch.cuda, 'get_device_properties', lambda device: H100)
    _correct_bfloat16(patch)


def try_small_maps(patch=setattr) -> None:
    """Let the first use of an operation be of a smaller map: the interpreter is slow."""
    patch(first_use, 'HEIGHT', 3)
    patch(first_use, 'WIDTH', 5)


def _correct_bfloat16(patch) -> None:
    """The interpreter multiplies the bits of bfloat16, and cuts digits off instead of rounding."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def rounding_cast(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(source.data).bfloat16().view(torch.uint16)
            return TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, source, dtype)

    def widening_dot(self, a, b, *args):
        a, b = (
            cast(self, operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
            for operand in (a, b)
        )
        return dot(self, a, b, *args)

    patch(InterpreterBuilder, 'cast_impl', rounding_cast)
    patch(InterpreterBuilder, 'create_dot', widening_dot)
