"""Compile every launch of the Triton operations for a GPU that need not be there.

The operations run on CPU tensors with kernels that only note how they are
launched; Triton then compiles each launch. Exits with 1 if a kernel does not
compile or takes more shared memory than a program of that GPU can have.

    python dev/compile_kernels.py 90 --costs

also prints what each launch costs, as far as that shows without a run.
"""

import argparse
import math
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import triton
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
# NVIDIA's programs that travel with Triton.
NVIDIA = Path(triton.__file__).parent / 'backends/nvidia/bin'
# A map has so many positions that no weight is a multiple of it.
BATCH_SIZE, HEIGHT, WIDTH = 2, 16, 208
# Channels of the maps.
WIDTHS = 64, 128, 192, 320, 384, 512
# The product of these constants is the elements of a step: of a loop, or of a whole program.
STEP = 'BLOCK', 'PIXELS', 'COLUMNS', 'CHANNELS', 'ROWS', 'UNITS', 'HIDDEN_TILE'
COSTS = 'kernel width map instructions loop an-element registers spills shared bytes'
launches = {}


class Launch(NamedTuple):
    """What is compiled, for how many channels and which type, and bytes of maps an element."""

    source: ASTSource
    options: dict
    constants: dict
    channels: int
    dtype: torch.dtype
    map_bytes: int


class NotedKernel:
    case = None  # channels and type of the maps that are noted

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.note

    def note(self, *args, num_warps=4, num_stages=3, **constants):
        arguments = dict(zip(self.kernel.arg_names, args))
        constants.update((name, None) for name, value in arguments.items() if value is None)
        signature, divisible, map_bytes = {}, {}, 0
        elements = BATCH_SIZE * HEIGHT * WIDTH * self.case[0]
        for index, name in enumerate(self.kernel.arg_names):
            value = arguments.get(name)
            if name in constants:
                signature[name] = 'constexpr'
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype if is_tensor else type(value)]
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                divisible[(index,)] = [['tt.divisibility', 16]]
            if is_tensor and value.numel() % elements == 0:
                map_bytes += value.nbytes // elements
        options = {'num_warps': num_warps, 'num_stages': num_stages}
        source = ASTSource(self.kernel, signature, constants, divisible)
        key = str((self.kernel.__name__, signature, constants, options))
        launches.setdefault(key, Launch(source, options, constants, *self.case, map_bytes))


def note_launches(channels, dtype, matmul_type):
    """Forward and backward of all operations at one width."""
    NotedKernel.case = channels, dtype
    x = torch.zeros(BATCH_SIZE, channels, HEIGHT, WIDTH, dtype=dtype)
    vector, factor = torch.zeros(channels), torch.ones(BATCH_SIZE)
    fc1 = torch.zeros(4 * channels, channels, dtype=matmul_type)
    bias, fc2 = torch.zeros(4 * channels), fc1.t().contiguous()
    for sample_scale in (None, factor):
        y, moments, stats = triton_ops.pool_mix(x, vector, vector, sample_scale, 3, 1e-5, dtype)
        triton_ops.pool_mix_backward(x, x, moments, vector, vector, sample_scale, 3)
        _, moments = triton_ops.group_norm(y, stats, vector, vector, 1e-5, dtype)
        triton_ops.group_norm_backward(y, y, moments, vector)
        if triton_ops.split_channels(channels) is None:
            continue
        norm = vector, vector, fc1, bias, fc2, vector, vector, sample_scale
        _, moments = triton_ops.channel_mlp(y, stats, *norm, 1e-5, dtype)
        triton_ops.channel_mlp_backward(y, y, moments, *norm)


def print_costs(launch, binary):
    """One row of :data:`COSTS`, which the machine code shows.

    Instructions of a thread: all, those of the largest loop, and how many of its threads
    work on one element (of the loop, or of a program without one). Registers of a thread, its
    bytes of spills, bytes of shared memory, and bytes of maps that are read and written per
    element, were each read once.
    """
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        code, usage = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in ([NVIDIA / 'nvdisasm', '-c'], [NVIDIA / 'cuobjdump', '-res-usage'])
        )
    count, loop = count_instructions(code)
    step = math.prod(launch.constants.get(name, 1) for name in STEP)
    a_step = loop or count
    if 'INNER' in launch.constants:  # a loop within each element
        a_step = count + loop * (launch.channels // launch.constants['INNER'] - 1)
    an_element = a_step * 32 * launch.options['num_warps'] / step
    registers, spills = (re.search(rf'{name}:(\d+)', usage)[1] for name in ('REG', 'STACK'))
    row = launch.source.fn.__name__, launch.channels, str(launch.dtype).removeprefix('torch.')
    row += count, loop, f'{an_element:.1f}', registers, spills, binary.metadata.shared
    print(*row, launch.map_bytes, {k: v for k, v in launch.constants.items() if v is not None})


def count_instructions(code):
    """Instructions of machine code, and those of its largest loop."""
    labels, count, loop = {}, 0, 0
    for line in code.splitlines():
        if label := re.match(r'(\.L_x_\d+):', line):
            labels[label[1]] = count
        elif (instruction := re.match(r'\s+/\*[0-9a-f]{4,}\*/\s+(.+?) ;', line)) is not None:
            if instruction[1].startswith('NOP'):
                continue
            count += 1
            target = re.search(r'\bBRA.*`\((\.L_x_\d+)\)', instruction[1])
            if target and target[1] in labels and count - labels[target[1]] > 1:  # not the end
                loop = max(loop, count - labels[target[1]])
    return count, loop


def main(chip, widths=WIDTHS, kernels='', with_costs=False):
    for room in ('statistics', 'pool_mix', 'channel_mlp', 'group_norm'):
        module = import_module(f'mmpoolformer.ops.triton.{room}')
        for name in dir(module):
            if name.endswith('_kernel'):
                setattr(module, name, NotedKernel(getattr(module, name)))
    for channels in widths:
        note_launches(channels, torch.float32, torch.bfloat16)
    note_launches(64, torch.bfloat16, torch.bfloat16)
    note_launches(64, torch.float16, torch.float16)
    if with_costs:
        print(COSTS)
    for launch in launches.values():
        if kernels not in launch.source.fn.__name__:
            continue
        binary = compile(launch.source, target=GPUTarget('cuda', chip, 32), options=launch.options)
        if binary.metadata.shared > SHARED_MEMORY[chip]:
            name = launch.source.fn.__name__
            sys.exit(f'{name} takes {binary.metadata.shared} bytes: {launch.options}')
        if with_costs:
            print_costs(launch, binary)
    print(f'{len(launches)} launches compiled for sm_{chip}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('chip', type=int, choices=SHARED_MEMORY, help='90 stands for sm_90')
    parser.add_argument('--channels', type=int, nargs='+', default=WIDTHS, help='of the maps')
    parser.add_argument('--kernels', default='', help='those whose name has this part')
    parser.add_argument('--costs', action='store_true', help='print what each launch costs')
    arguments = parser.parse_args()
    main(arguments.chip, arguments.channels, arguments.kernels, arguments.costs)
