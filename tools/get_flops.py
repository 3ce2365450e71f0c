"""Count parameters and multiply-accumulates (MACs) of a config, and the memory of one image."""

import argparse
import sys

import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table

from mmpoolformer.engine.checks import CfgOptions, check_backbones, check_installed
from mmpoolformer.engine.complexity import measure
from mmpoolformer.engine.launch import (
    CONFIG_HELP,
    LaunchError,
    find_config_file,
    override,
    read_config,
    run,
)
from mmpoolformer.registry import build_model, import_custom_modules
from mmpoolformer.utils.config_tree import unsync_batch_norms
from mmpoolformer.utils.errors import join, last_line

DETECTION_SHAPE = 800, 1333  # that of COCO's images in the published recipes


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar=('H', 'W'),
        help='size of the image (default: the size of the data preprocessor, or 800 1333)',
    )
    parser.add_argument(
        '--backbone-only', action='store_true', help='leave out neck and heads, and any padding'
    )
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        raise LaunchError(f'--shape {args.shape}: give a side, or height and width, in pixels')
    path = find_config_file(args.config)
    cfg = read_config(path)
    override(cfg, args.cfg_options)
    model = build(cfg, path)
    height, width = image_shape(cfg, args)
    print(f'running one image of {height}×{width} on the CPU …', file=sys.stderr, flush=True)
    torch.manual_seed(0)
    channels = cfg.model.backbone.get('in_channels', 3) if cfg.model.get('backbone') else 3
    if args.backbone_only:
        model = model.backbone
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            result = measure(
                model, torch.randn(1, channels, height, width), [sample(cfg, height, width)]
            )
    except (ValueError, RuntimeError) as error:  # what a backbone says of such images
        raise LaunchError(
            f'an image of {height}×{width} does not fit: {last_line(error)}'
        ) from error
    show(result, f'{path.stem}, one image of {height}×{width}')


def build(cfg, path):
    """The model of the config with random weights, in evaluation mode."""
    for key in ('model', 'default_scope'):
        if not cfg.get(key):
            raise LaunchError(
                f'{path} has no {key!r}: it is not a detection or segmentation config'
            )
    check_installed(cfg, path)
    check_backbones(cfg)
    unsync_batch_norms(cfg.model)
    try:
        import_custom_modules(cfg)
        model = build_model(cfg.model, cfg.default_scope).eval()
    except Exception as error:  # whatever the code of a model raises
        raise LaunchError(f'the model of {path} cannot be built: {last_line(error)}') from error
    if not hasattr(model, 'backbone'):
        raise LaunchError(f'{path}: a {type(model).__name__} has no backbone of its own')
    return model


def image_shape(cfg, args):
    """Height and width as they arrive at the backbone."""
    preprocessor = cfg.model.get('data_preprocessor') or {}
    shape = args.shape or preprocessor.get('size') or DETECTION_SHAPE
    height, width = shape if len(shape) == 2 else (*shape, *shape)
    divisor = 1 if args.backbone_only else preprocessor.get('pad_size_divisor') or 1
    return tuple(-(-side // divisor) * divisor for side in (height, width))


def sample(cfg, height, width):
    """What a detector asks about an image."""
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    elif cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        Sample = BaseDataElement
    shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (height, width))
    meta = dict(shape, batch_input_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0)
    return Sample(metainfo=meta)


def show(result, title):
    table = Table('part', 'parameters', 'MACs')
    for name, parameters in result.parameters.items():
        ran = name == 'backbone' or not result.reason  # which is given below
        macs = f'{result.macs[name] / 1e9:.3f} G' if ran else '–'
        table.add_row(name, f'{parameters / 1e6:.3f} M', macs, end_section=name == 'heads')
    print(title)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    weights, peak = result.weight_bytes / 2**20, result.peak_bytes / 2**20
    print(f'memory of inference: {weights:.0f} MiB of weights and at most {peak:.0f} MiB of maps')
    print(
        'counted: convolutions, matrix products and attention, a multiplication with its addition '
        'as one'
    )
    print('not counted: norms, activations, pooling, sums, resizing, what comes after the heads')
    if result.uncounted:
        kernels = join(f'{name} ({count})' for name, count in result.uncounted.items())
        print(f"not counted either: what mmcv's own kernels do in {kernels}")
    if result.reason:
        print(f'only the backbone was run, as the heads need more than an image: {result.reason}')


if __name__ == '__main__':
    run(main)
