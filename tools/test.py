"""Test a detector or a segmentor: the config's ``default_scope`` says which."""

import argparse
import os
from pathlib import Path

from mmengine.hooks import EMAHook

from mmpoolformer.engine.dataset_meta import check_class_order, meta_of_config
from mmpoolformer.engine.exported import is_model_file, load_model_file, prepare_config
from mmpoolformer.engine.hooks import KeepApart
from mmpoolformer.engine.inference import add_deploy_arguments, deploy, misfit
from mmpoolformer.engine.launch import (
    LaunchError,
    add_common_arguments,
    build_runner,
    load_config,
    require,
    run,
    test,
)
from mmpoolformer.engine.scalars import write_metrics
from mmpoolformer.utils.config_tree import type_of, walk


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint file or URL, or a model file of tools/export.py'
    )
    parser.add_argument(
        '--out', help='save the predictions: detection, a .pkl file; segmentation, a folder of PNGs'
    )
    parser.add_argument('--show-dir', help='save pictures of the predictions here')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_deploy_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args)
    model = None
    if is_model_file(args.checkpoint):
        model = load_model_file(cfg, args, meta_of_config(cfg).get('classes'))
        prepare_config(cfg)
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        enable_tta(cfg)
    if args.out:
        save_predictions(cfg, args.out)
    runner = build_runner(cfg, 'test', None if model is not None else args.checkpoint)
    if cfg.default_scope == 'mmdet' and args.show_dir:
        runner.register_hook(KeepApart('--show-dir', os.path.basename))
    if cfg.default_scope == 'mmseg' and args.out:
        runner.register_hook(KeepApart('--out', lambda path: Path(path).stem))
    if model is None:
        load_whole_model(runner, args.checkpoint)
        deploy(runner.model, args)
    else:
        runner.model = model
    write_metrics(cfg, 'test', test(runner))
    if args.show_dir:
        print(f'pictures of the predictions: {pictures_of(runner, args.show_dir)}')


def load_whole_model(runner, checkpoint):
    """Load every tensor of the model, where mmengine would pass over keys that do not match."""
    runner.call_hook('before_run')  # EMAHook makes the model that it then loads into
    try:
        content = runner.load_checkpoint(checkpoint, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise misfit(checkpoint, error) from error
    try:
        warning = check_class_order(content, runner.cfg, meta_of_config(runner.cfg).get('classes'))
    except LaunchError as error:
        raise LaunchError(f'{checkpoint} does not fit the test set: {error}') from error
    if warning:
        runner.logger.warning(warning)
    # Its average is what the weights are, and a compiled model cannot be copied for it again.
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]


def draw_predictions(cfg, show_dir):
    hook = require(cfg, 'default_hooks.visualization', '--show-dir')
    hook.draw = True
    hook.interval = 1  # every image on both stacks
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = show_dir  # below the run's own folder, as in mmdet
    else:
        require(cfg, 'visualizer', '--show-dir').save_dir = show_dir


def pictures_of(runner, show_dir):
    is_below = runner.cfg.default_scope == 'mmdet'
    return Path(runner.work_dir, runner.timestamp, show_dir) if is_below else Path(show_dir)


def enable_tta(cfg):
    dataset = require(cfg, 'test_dataloader.dataset', '--tta')
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if cfg.default_scope == 'mmdet':
        if any('segm' in (node.get('metric') or ()) for _, node in walk(cfg.test_evaluator)):
            raise LaunchError('--tta merges boxes only: mmdet has none for masks')
        cfg.setdefault('tta_model', DETECTION_TTA_MODEL)
        cfg.setdefault('tta_pipeline', flipped(dataset.pipeline))
    dataset.pipeline = require(cfg, 'tta_pipeline', '--tta')
    cfg.model = dict(**require(cfg, 'tta_model', '--tta'), module=cfg.model)


# What mmdet does for a config that does not say: both flips, merged by NMS.
DETECTION_TTA_MODEL = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)


def flipped(pipeline):
    """A test pipeline with both flips, before the true boxes, which stay as they are, and Pad."""
    *steps, pack = pipeline
    # What DetTTAModel turns back is the image without padding.
    late = [step for step in steps if type_of(step) in ('LoadAnnotations', 'Pad')]
    steps = [step for step in steps if step not in late]
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pack = dict(pack, meta_keys=(*meta_keys, 'flip', 'flip_direction'))
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    augment = [flips, *([step] for step in late), [pack]]
    return [*steps, dict(type='TestTimeAug', transforms=augment)]


def save_predictions(cfg, out):
    evaluators = require(cfg, 'test_evaluator', '--out')
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if cfg.default_scope == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise LaunchError(f'--out {out}: a detector saves its predictions to a .pkl file')
        evaluators = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]
    else:
        evaluators[0].update(output_dir=out, keep_results=True)
    cfg.test_evaluator = evaluators


if __name__ == '__main__':
    run(main)
