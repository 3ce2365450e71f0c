"""Show where a model looks: Grad-CAM of the backbone's stages for a prediction, and their features.

Exit code 1 if an image could not be read or has no such prediction; the others are done.
"""

import argparse
from pathlib import Path

from mmpoolformer.engine.checks import check_work_dir
from mmpoolformer.engine.explaining import (
    METHODS,
    Explainer,
    import_grad_cam,
    save_cams,
    save_features,
)
from mmpoolformer.engine.exported import is_model_file
from mmpoolformer.engine.inference import (
    add_inference_arguments,
    find_classes,
    load_inferencer,
    report_passed_over,
)
from mmpoolformer.engine.inputs import find_inputs, read_images
from mmpoolformer.engine.launch import LaunchError, run
from mmpoolformer.utils.errors import DataError
from mmpoolformer.utils.files import unique_name
from mmpoolformer.utils.progress import track


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_inference_arguments(parser)
    parser.add_argument(
        '--class',
        dest='category',
        metavar='NAME',
        help='explain the best detection of this class, or its pixels (default: the best '
        'detection of all, or the class with the most pixels)',
    )
    parser.add_argument(
        '--stage',
        type=int,
        nargs='+',
        metavar='I',
        help='stages of the backbone, from 0 to 3 (default: all)',
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        default='grad-cam',
        help='hires-cam keeps to the place of one detection (default: grad-cam)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/explanations'),
        help='folder for the pictures (default: work_dirs/explanations)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    import_grad_cam()  # or say so before a model is loaded
    inputs = find_inputs(args.inputs)
    if inputs.videos:
        raise LaunchError(f'{inputs.videos[0]} is a video: give images, such as frames of it')
    check_work_dir(args.out)
    if is_model_file(args.checkpoint):
        raise LaunchError(f'{args.checkpoint} has no layers to look into: give the checkpoint')
    inferencer = load_inferencer(args)
    explainer = Explainer(inferencer, args.method)
    stages = choose_stages(args.stage, len(explainer.layers))
    category = None
    if args.category is not None:
        (category,) = find_classes([args.category], inferencer.model.dataset_meta['classes'])
    problems, names = [], set()
    for frame in track(read_images(inputs.images, problems), len(inputs.images), 'images'):
        try:
            explanation = explainer.explain(frame, category)
        except DataError as error:
            problems.append(str(error))
            continue
        name = unique_name(frame.file.stem, names)
        save_cams(explanation, frame.rgb(), stages, args.out / f'{name}_cam.png')
        save_features(explanation, frame.rgb(), args.out / f'{name}_features.png')
        print(f'{frame}: {explanation.title}')
    print(f'pictures in {args.out}')
    report_passed_over(problems)


def choose_stages(wanted, count):
    stages = list(range(count)) if wanted is None else wanted
    for stage in stages:
        if not 0 <= stage < count:
            raise LaunchError(f'--stage {stage}: the backbone has the stages 0 to {count - 1}')
    return stages


if __name__ == '__main__':
    run(main)
