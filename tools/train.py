"""Train a detector or a segmentor: the config's ``default_scope`` says which."""

import argparse

import torch

from mmpoolformer import ARCHS, MetaFormer
from mmpoolformer.archs import known_names
from mmpoolformer.engine.launch import (
    LaunchError,
    add_common_arguments,
    build_runner,
    load_config,
    require,
    run,
    train,
)
from mmpoolformer.engine.scalars import write_metrics
from mmpoolformer.engine.start import AUTO
from mmpoolformer.utils.config_tree import type_of


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        '--amp',
        nargs='?',
        const='float16',
        choices=['float16', 'bfloat16'],
        help='automatic mixed precision (GPU), in float16 unless said otherwise',
    )
    parser.add_argument('--seed', type=int, help='seed of all random numbers (default: any)')
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='only operations that give the same numbers in every run; slower',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const=AUTO,
        metavar='CHECKPOINT',
        help='continue from CHECKPOINT, or without it from the newest one in the work dir',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual over the base batch size',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='torch.compile the backbone: faster iterations after a start of minutes, and again a '
        'pause for new image sizes',
    )
    parser.add_argument(
        '--swap-backbone',
        choices=known_names(),
        metavar='ARCH',
        help=f'train the config with a PoolFormer ({", ".join(ARCHS)}) or another MetaFormer '
        "(caformer_s18, …) in its backbone's place, "
        'as tools/swap_backbone.py does',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args, args.swap_backbone)
    if args.amp:
        enable_amp(cfg, args.amp)
    randomness = dict(cfg.get('randomness') or {})
    if args.seed is not None:
        randomness['seed'] = args.seed
    if args.deterministic:
        randomness['deterministic'] = True
    cfg.randomness = randomness or dict(seed=None)
    if args.auto_scale_lr:
        require(cfg, 'auto_scale_lr.base_batch_size', '--auto-scale-lr')
        cfg.auto_scale_lr.enable = True
        # mmengine counts the images of an iteration, of which a step may take several.
        counts = cfg.get('optim_wrapper', {}).get('accumulative_counts') or 1
        if counts > 1:
            cfg.auto_scale_lr.base_batch_size /= counts

    runner = build_runner(cfg, 'train', args.resume)
    if args.compile:
        compile_backbones(runner.model)
    train(runner)
    history = runner.message_hub.log_scalars.items()
    metrics = {key.removeprefix('val/'): log.current() for key, log in history if 'val/' in key}
    metrics = {key: value for key, value in metrics.items() if key not in ('time', 'data_time')}
    write_metrics(cfg, 'val', metrics)


def enable_amp(cfg, dtype):
    if not torch.cuda.is_available():
        raise LaunchError('--amp needs a GPU: mmengine has no mixed precision for the CPU')
    wrapper = type_of(dict(type='OptimWrapper') | require(cfg, 'optim_wrapper', '--amp'))
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise LaunchError(f'--amp replaces an OptimWrapper, but optim_wrapper is a {wrapper}')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.dtype = dtype
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def compile_backbones(model):
    if not hasattr(torch.nn.Module, 'compile'):
        raise LaunchError(f'--compile needs torch 2.2 or later, and this is {torch.__version__}')
    # In place, and no part of a checkpoint, of EMA's copy or of another process.
    backbones = [module for module in model.modules() if isinstance(module, MetaFormer)]
    for backbone in backbones:
        backbone.compile()
    if not backbones:
        raise LaunchError('--compile is for the backbones of mmpoolformer, and the model has none')


if __name__ == '__main__':
    run(main)
