"""Draw docs/images/demo.jpg, the README's picture, from what ``make demo`` trained.

python dev/readme_picture.py
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import mmcv
from drawing import draw_boxes, find_boxes, find_labels, palette_of, save
from mmdet.apis import init_detector
from mmengine.config import Config
from mmseg.apis import init_model

from demo import CONFIGS, DATA, OUT, ROOT

COLUMNS = 5
PICTURE = ROOT / 'docs' / 'images' / 'demo.jpg'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', type=Path, default=OUT, help="the demo's folder")
    parser.add_argument('--out', type=Path, default=PICTURE)
    args = parser.parse_args()
    os.chdir(ROOT)  # the configs name data/digits
    checkpoints = []
    for config in CONFIGS:
        pointer = args.models / config.stem / 'last_checkpoint'
        if not pointer.is_file():
            sys.exit(f'error: {pointer} is not there: run make demo first')
        checkpoints.append(pointer.read_text())
    draw_both(checkpoints, args.out)


def draw_both(checkpoints: list[str], path: Path):
    """Boxes of the detector above, labels of the segmentor over the same images below."""
    files = sorted((DATA / 'images' / 'validation').glob('*.jpg'))[:COLUMNS]
    images = [mmcv.imread(str(file)) for file in files]
    # One toolbox after the other: steps are found in the registry of the last model made.
    detector = init_detector(Config.fromfile(CONFIGS[0]), checkpoints[0], device='cpu')
    found = [find_boxes(detector, image) for image in images]
    cfg = Config.fromfile(CONFIGS[1])
    segmentor = init_model(cfg, checkpoints[1], device='cpu')
    palette = palette_of(cfg)
    figure, axes = plt.subplots(2, COLUMNS, figsize=(2 * COLUMNS, 4.1), squeeze=False)
    for column, image, boxes in zip(axes.T, images, found):
        draw_boxes(column[0], image, boxes, '')
        column[1].imshow(image[..., ::-1])
        column[1].imshow(palette[find_labels(segmentor, image)], alpha=0.65)
    save(figure, path)


if __name__ == '__main__':
    main()
