"""Test a detector or a segmentor: the config's ``default_scope`` says which."""

import argparse

from mmpoolformer.launch import (
    LaunchError,
    add_common_arguments,
    build_runner,
    load_config,
    run,
    write_metrics,
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out', help='save the predictions: detection, a .pkl file; segmentation, a folder of PNGs'
    )
    parser.add_argument('--show-dir', help='save pictures of the predictions here')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        enable_tta(cfg, args.config)
    if args.out:
        save_predictions(cfg, args.out)
    write_metrics(cfg, 'test', build_runner(cfg, 'test').test())


def draw_predictions(cfg, show_dir):
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise LaunchError(
            '--show-dir needs default_hooks.visualization in the config, '
            "dict(type='DetVisualizationHook') or dict(type='SegVisualizationHook')"
        )
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = show_dir  # below the run's own folder, as in mmdet
    else:
        cfg.visualizer.save_dir = show_dir


def enable_tta(cfg, config):
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise LaunchError(f'--tta: {config} has no tta_model and tta_pipeline; add them')
    if cfg.model.get('roi_head', {}).get('mask_head'):
        raise LaunchError('--tta merges boxes only: mmdet has no test-time augmentation for masks')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def save_predictions(cfg, out):
    if cfg.default_scope == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise LaunchError(f'--out {out}: a detector saves its predictions to a .pkl file')
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        cfg.test_evaluator = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]
    else:
        cfg.test_evaluator.output_dir = out
        cfg.test_evaluator.keep_results = True


if __name__ == '__main__':
    run(main)
