"""Predict on images, folders, globs and videos: pictures, and results for other programs.

Exit code 1 if an input could not be read; the others are done all the same.
"""

import argparse
from pathlib import Path

from mmpoolformer.engine.checks import check_work_dir
from mmpoolformer.engine.inference import (
    add_deploy_arguments,
    add_inference_arguments,
    check_not_among,
    deploy,
    find_classes,
    load_inferencer,
    report_passed_over,
)
from mmpoolformer.engine.inputs import find_inputs
from mmpoolformer.engine.launch import LaunchError, run
from mmpoolformer.engine.predicting import PICTURES, Detections, LabelMaps, predict


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_inference_arguments(parser)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/predictions'),
        help='folder for everything that is written (default: work_dirs/predictions)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='detections with a lower score are neither drawn nor written (default: 0.3)',
    )
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME', help='only these (default: all of the model)'
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images that the model sees at once (default: 1)'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write the results alone')
    add_deploy_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.batch_size < 1:
        raise LaunchError(f'--batch-size {args.batch_size}: at least 1')
    inputs = find_inputs(args.inputs)
    check_not_among([*inputs.images, *inputs.videos], args.out / PICTURES)
    check_work_dir(args.out)
    inferencer = load_inferencer(args)
    results = choose_results(inferencer, args)
    deploy(inferencer.model, args)
    broken = predict(inferencer, inputs, results, args.batch_size)
    print(f'{results.frames} images and frames: {results}')
    if not args.no_pictures:
        print(f'pictures in {args.out / PICTURES}')
    report_passed_over(broken)


def choose_results(inferencer, args):
    classes = inferencer.model.dataset_meta['classes']
    wanted = find_classes(args.classes, classes) if args.classes else None
    if inferencer.cfg.default_scope == 'mmdet':
        pictures = not args.no_pictures
        return Detections(inferencer, args.out, wanted, pictures, score_thr=args.score_thr)
    return LabelMaps(inferencer, args.out, wanted, not args.no_pictures)


if __name__ == '__main__':
    run(main)
