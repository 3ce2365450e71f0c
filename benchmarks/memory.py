"""Measure the memory that training keeps for the backward pass; write docs/reports/memory.md.

What the backbone keeps grows with the number of pixels: a formula with the elements kept per
block, checked here against what PyTorch's allocator counted on the CPU; and whole models, Mask
R-CNN by size and every recipe at its own.
"""

import argparse
import gc
import os
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest import mock

os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # its notes on every profile

import torch
from common import REPORTS, build_for_training, markdown, peak_memory, write_page
from mmdet.testing import demo_mm_inputs
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch.profiler import ProfilerActivity, profile

from mmpoolformer import ARCHS, PoolFormer
from mmpoolformer.ops import backend, first_use
from mmpoolformer.utils.progress import track

# Bytes kept per channel and position of a block, per channel and position of a stage's output,
# and per pixel of the image; autocast also keeps a 16-bit copy of the weights it uses.
MODES = {
    'plain': dict(token_mixing='plain', block=56, output=8, image=0),
    'fused': dict(token_mixing='fused', block=48, output=8, image=12),
    'fused, with_cp': dict(token_mixing='fused', with_cp=True, block=4, output=8, image=12),
    'plain, AMP': dict(token_mixing='plain', amp=True, block=36, output=4, image=6),
    'fused, AMP': dict(token_mixing='fused', amp=True, block=28, output=8, image=6),
    'fused, AMP, with_cp': dict(
        token_mixing='fused', amp=True, with_cp=True, block=4, output=8, image=6
    ),
}
SIZES = [(224, 224), (512, 512), (800, 1333)]
MEASURED = [('s12', SIZES[0]), ('s12', SIZES[1]), ('s12', SIZES[2]), ('s24', SIZES[1])]
MEASURED += [('s36', SIZES[1]), ('m36', SIZES[1]), ('m48', SIZES[0])]
CARDS_GB = (12, 24, 80)
DETECTORS = ('poolformer-s12', 'caformer-s18')
DETECTOR_SIZES = [(200, 333), (400, 667), (800, 1333)]
# Images, and their largest usual size, on which the memory of each recipe depends. UPerNet's norms
# take no image alone.
RECIPES = {
    'cascade-mask-rcnn_{}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco': (1, 800, 1333),
    'dino-4scale_{}_8xb2-12e_coco': (1, 800, 1333),
    'rtmdet-s_{}_4xb32-100e_coco': (1, 640, 640),
    'rtmdet-m_{}_4xb32-100e_coco': (1, 640, 640),
    'mask2former_{}_8xb2-lsj-50e_coco': (1, 1024, 1024),
    'upernet_{}_8xb2-amp-160k_ade20k-512x512': (2, 512, 512),
    'mask2former_{}_8xb2-160k_ade20k-512x512': (1, 512, 512),
}
RECIPE_BACKBONES = ('poolformer-s24', 'caformer-s18')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=REPORTS / 'memory.md')
    return parser.parse_args()


def main():
    args = parse_args()
    lines = [
        *formula(),
        '',
        '## Formula and measurement',
        '',
        *measurements(),
        '',
        '## Images per card, backbone alone',
        '',
        *cards(),
        '',
        '## Mask R-CNN as a whole',
        '',
        *detectors(),
        '',
        '## Recipes',
        '',
        *recipes(),
    ]
    write_page(args.out, lines)


# What the backbone keeps ---------------------------------------------------------------------


def positions(arch, height, width):
    """Channels times positions, summed over blocks and over stage outputs."""
    blocks = outputs = 0
    for stage, (layers, channels) in enumerate(zip(ARCHS[arch].layers, ARCHS[arch].embed_dims)):
        elements = channels * height * width / 16 / 4**stage
        blocks += layers * elements
        outputs += elements
    return blocks, outputs


def predicted(mode, arch, height, width):
    """Bytes kept per image."""
    blocks, outputs = positions(arch, height, width)
    kept = MODES[mode]
    return kept['block'] * blocks + kept['output'] * outputs + kept['image'] * height * width


@cache
def without_memory(arch):
    """A backbone to count the parameters of."""
    with torch.device('meta'):
        return PoolFormer(arch)


def weight_copies(mode, arch):
    """Bytes of the 16-bit weights that autocast keeps; of a recomputed block it keeps none."""
    if not MODES[mode].get('amp'):
        return 0
    model = without_memory(arch)
    parts = model.network[1::2] if MODES[mode].get('with_cp') else model.network
    convolutions = [model.patch_embed, *parts]
    return 2 * sum(p.numel() for part in convolutions for p in part.parameters() if p.ndim == 4)


def measured(mode, arch, height, width):
    """Bytes that are allocated and not freed between the start and the end of a forward pass."""
    options = {key: MODES[mode][key] for key in ('token_mixing', 'with_cp') if key in MODES[mode]}
    model = PoolFormer(arch, **options).train()
    image = torch.randn(1, 3, height, width)

    def forward():
        with torch.autocast('cpu', torch.bfloat16, enabled=MODES[mode].get('amp', False)):
            return model(image)

    return kept(forward)


def kept(forward):
    """Bytes that a call allocates and does not free while its result is held."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = forward()
    del result
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def kept_by_kernels(dtype, amp):
    """Bytes per element that a block on CUDA keeps, with its MLP as Triton kernels.

    By what the operations save, with kernels that compute nothing in the place of those.
    """
    block = PoolFormer('s12').network[0][0].to(dtype).train()
    x = torch.zeros(1, 64, 32, 32, dtype=dtype, requires_grad=True)
    maps = {}

    def note(tensor):
        if tensor.numel() >= x.numel():
            maps[tensor.data_ptr()] = tensor
        return tensor

    with ExitStack() as stack:
        for name in ('pool_mix', 'channel_mlp'):
            module = import_module(f'mmpoolformer.ops.triton.{name}')
            kernel = getattr(module, f'_fake_{name}')
            stack.enter_context(mock.patch.object(backend.kernels(), name, kernel))
        stack.enter_context(mock.patch.object(backend, 'may_run', lambda x: True))
        stack.enter_context(mock.patch.object(first_use, 'agrees', lambda *_: True))
        stack.enter_context(torch.autocast('cpu', torch.bfloat16, enabled=amp))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda t: t))
        block(x)
    return sum(t.numel() * t.element_size() for t in maps.values()) // x.numel()


def fitting(mode, arch, size, card_gb):
    """Images per card beside weights, gradients and AdamW's moments in float32, and 1 GB."""
    parameters = sum(p.numel() for p in without_memory(arch).parameters())
    free = card_gb * 1e9 - 16 * parameters - weight_copies(mode, arch) - 1e9
    return int(free // predicted(mode, arch, *size))


# Report --------------------------------------------------------------------------------------


def formula():
    """What is counted, and the numbers of each mode."""
    return [
        '# Memory in training',
        '',
        'Made by `benchmarks/memory.py`; do not edit. The **backbone alone**: what one image '
        'leaves in memory for the backward pass. A neck and heads come on top.',
        '',
        'bytes = *b* × Σ blocks *C H W* + *o* × Σ outputs *C H W* + *i* × image *H W*',
        '',
        'Sums run over blocks and over stage outputs: *C* channels at *H* / 4, 8, 16, 32. AMP is '
        'autocast to bfloat16, which also keeps a copy of the weights, whatever the image.',
        '',
        *markdown(
            ('mode', '*b*', '*o*', '*i*'),
            [(mode, its['block'], its['output'], its['image']) for mode, its in MODES.items()],
        ),
        '',
        'In float32 the plain path keeps 14 maps per block: input, two norms, pooled, difference, '
        'mixed, the branches, and the four times wider hidden map before and after GELU. The fused '
        'path keeps 12, with `with_cp` it keeps the input and computes one block at a time again.',
        '',
        'These are the paths of the CPU; by default the operations save the same on CUDA.',
        *on_cuda(),
    ]


def on_cuda():
    """What the kernels of the channel MLP keep; nothing without Triton."""
    if not backend.load():
        return []
    sizes = [kept_by_kernels(*case) for case in ((torch.float32, True), (torch.bfloat16, False))]
    return [
        'With `MMPOOLFORMER_TRITON_MLP=1` the blocks of up to 384 channels keep no hidden map in '
        '16 bits: their input and the mixed map, '
        f'*b* = {sizes[0]} under AMP and {sizes[1]} for a model in bfloat16, counted by what the '
        'operations save; no GPU was at hand to measure it.',
    ]


def measurements():
    rows = []
    points = [(mode, arch, size) for mode in MODES for arch, size in MEASURED]
    for mode, arch, (height, width) in track(points, len(points), 'measuring'):
        ours = (predicted(mode, arch, height, width) + weight_copies(mode, arch)) / 1e6
        theirs = measured(mode, arch, height, width) / 1e6
        difference = f'{100 * (theirs / ours - 1):+.1f} %'
        image = f'{height}×{width}'
        rows.append((mode, arch, image, f'{ours:.1f}', f'{theirs:.1f}', difference))
    headings = 'mode', 'arch', 'image', 'formula, MB', 'measured, MB', 'difference'
    return markdown(headings, rows)


def cards():
    rows = [
        (arch, f'{size[0]}×{size[1]}', mode, *(fitting(mode, arch, size, gb) for gb in CARDS_GB))
        for arch in ARCHS
        for size in SIZES[1:]
        for mode in MODES
    ]
    return [
        'By the formula, beside weights, gradients and AdamW’s two moments (16 bytes a '
        'parameter) and 1 GB for everything else.',
        '',
        *markdown(('arch', 'image', 'mode', *(f'{gb} GB' for gb in CARDS_GB)), rows),
    ]


def detectors():
    points = [(name, *size) for name in DETECTORS for size in DETECTOR_SIZES]
    rows = [detector_row(*point) for point in track(points, len(points), 'Mask R-CNN')]
    return [
        'One image and its loss, float32, on the CPU: bytes kept for the backward pass, per pixel '
        'of the padded image, and the growth of the process in a whole step. CAFormer has '
        'attention in its last two stages. Heads and sampled boxes are a part that does not grow '
        'with the image; the rest grows with the pixels, where scores of attention would grow '
        'with their square.',
        '',
        *markdown(('backbone', 'image', 'kept, MB', 'bytes per pixel', 'peak, MB'), rows),
    ]


def detector_row(name, height, width):
    """Mask R-CNN in training: what it keeps for the backward pass, and the peak of a step."""
    bytes_kept, peak, pixels = whole(f'mask-rcnn_{name}_fpn_1x_coco', height, width, 1)
    per_pixel = f'{bytes_kept / pixels:.0f}'
    return name, f'{height}×{width}', f'{bytes_kept / 1e6:.0f}', per_pixel, peak


def recipes():
    points = [(name, backbone) for name in RECIPES for backbone in RECIPE_BACKBONES]
    rows = [recipe_row(*point) for point in track(points, len(points), 'recipes')]
    return [
        'Images of the recipe’s size and their loss, as above: in float32, where some recipes '
        'train with AMP. The formula counts the backbone alone, and those of pooling.',
        '',
        *markdown(
            ('recipe', 'images', 'backbone by the formula, MB', 'kept, MB', 'peak, MB'), rows
        ),
    ]


def recipe_row(name, backbone):
    count, *size = RECIPES[name]
    bytes_kept, peak, _ = whole(name.format(backbone), *size, count)
    _, arch = backbone.split('-')
    formula = f'{count * predicted("fused", arch, *size) / 1e6:.0f}' if arch in ARCHS else ''
    shown = f'{count} of {size[0]}×{size[1]}'
    return name.format(backbone), shown, formula, f'{bytes_kept / 1e6:.0f}', peak


def whole(config, height, width, count):
    """A whole model in training.

    Returns:
        Bytes that it keeps for the backward pass, MB at the peak of a step, and pixels of a
        padded image.
    """
    torch.manual_seed(0)
    model = build_for_training(f'{config}.py')
    made = images(model, [(3, height, width)] * count, 'mask' in config)
    batch = model.data_preprocessor(made, training=True)

    def loss():
        return model.parse_losses(model.loss(batch['inputs'], batch['data_samples']))[0]

    bytes_kept = kept(loss)
    peak = peak_memory(lambda: loss().backward(), 'cpu')
    peak = '–' if peak is None else f'{peak * 2**20 / 1e6:.0f}'
    return bytes_kept, peak, batch['inputs'].shape[2] * batch['inputs'].shape[3]


def images(model, shapes, with_mask):
    """Images with what the model learns from."""
    if not isinstance(model, BaseSegmentor):
        made = demo_mm_inputs(len(shapes), image_shapes=shapes, num_classes=80, with_mask=with_mask)
        for sample in made['data_samples']:
            sample.set_metainfo(dict(batch_input_shape=sample.img_shape))
        return made
    made = dict(inputs=[], data_samples=[])
    for _, *size in shapes:
        made['inputs'].append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
        labels = PixelData(data=torch.randint(0, 150, (1, *size)))
        shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(size))
        made['data_samples'].append(SegDataSample(gt_sem_seg=labels, metainfo=shape))
    return made


if __name__ == '__main__':
    main()
