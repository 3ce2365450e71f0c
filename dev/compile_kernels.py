"""Compile every launch of the Triton operations for a GPU that need not be there.

The operations run on CPU tensors with kernels that only note how they are
launched; Triton then compiles each launch. Exits with 1 if a kernel does not
compile or takes more shared memory than a program of that GPU can have.
"""

import sys
from importlib import import_module

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from mmpoolformer.ops import triton as triton_ops

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
TYPES = {
    torch.float32: '*fp32',
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    int: 'i32',
    float: 'fp32',
}
launches = {}


class NotedKernel:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.note

    def note(self, *args, num_warps=4, num_stages=3, **constants):
        arguments = dict(zip(self.kernel.arg_names, args))
        constants.update((name, None) for name, value in arguments.items() if value is None)
        signature, divisible = {}, {}
        for index, name in enumerate(self.kernel.arg_names):
            value = arguments.get(name)
            if name in constants:
                signature[name] = 'constexpr'
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype if is_tensor else type(value)]
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                divisible[(index,)] = [['tt.divisibility', 16]]
        options = {'num_warps': num_warps, 'num_stages': num_stages}
        launches[str((self.kernel.__name__, signature, constants, options))] = (
            ASTSource(self.kernel, signature, constants, divisible),
            options,
        )


def note_launches(channels, dtype, matmul_type):
    """Forward and backward of both operations at one width."""
    x = torch.zeros(2, channels, 16, 16, dtype=dtype)
    vector, factor = torch.zeros(channels), torch.ones(2)
    fc1 = torch.zeros(4 * channels, channels, dtype=matmul_type)
    bias, fc2 = torch.zeros(4 * channels), fc1.t().contiguous()
    for sample_scale in (None, factor):
        y, moments, stats = triton_ops.pool_mix(x, vector, vector, sample_scale, 3, 1e-5, dtype)
        triton_ops.pool_mix_backward(x, x, moments, vector, vector, sample_scale, 3)
        if triton_ops.split_channels(channels) is None:
            continue
        norm = vector, vector, fc1, bias, fc2
        for save_branch in (False, True):
            _, moments, branch = triton_ops.channel_mlp(
                y, stats, *norm, vector, vector, sample_scale, 1e-5, dtype, save_branch
            )
        triton_ops.channel_mlp_backward(y, y, branch, moments, *norm, vector, sample_scale)


def main(chip):
    for room in ('statistics', 'pool_mix', 'channel_mlp', 'norm_backward'):
        module = import_module(f'mmpoolformer.ops.triton.{room}')
        for name in dir(module):
            if name.endswith('_kernel'):
                setattr(module, name, NotedKernel(getattr(module, name)))
    for channels in (64, 128, 192, 320, 384, 512):
        note_launches(channels, torch.float32, torch.bfloat16)
    note_launches(64, torch.bfloat16, torch.bfloat16)
    note_launches(64, torch.float16, torch.float16)
    for source, options in launches.values():
        binary = compile(source, target=GPUTarget('cuda', chip, 32), options=options)
        if binary.metadata.shared > SHARED_MEMORY[chip]:
            sys.exit(f'{source.fn.__name__} takes {binary.metadata.shared} bytes: {options}')
    print(f'{len(launches)} launches compiled for sm_{chip}')


if __name__ == '__main__':
    main(int(sys.argv[1]))
