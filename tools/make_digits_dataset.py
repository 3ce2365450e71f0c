"""Make a small data set of handwritten digits («things») on real textures («stuff»).

Each image is a mosaic of two to four texture regions with four to eight digits pasted on it.
The pixels come from the pictures inside scikit-image's wheel and from scikit-learn's
handwritten digits, so nothing is downloaded. The same arguments give the same bytes.

    OUT/images/{training,validation}/00000.jpg
    OUT/annotations/{training,validation}/00000.png      0 unlabelled, 1-6 texture, 7 digit
    OUT/annotations/instances_{training,validation}.json COCO boxes and masks, 10 digit classes
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from skimage import data as skimage_data
from sklearn.datasets import load_digits

from mmpoolformer.utils.files import replacing
from mmpoolformer.utils.progress import track

TEXTURES = {
    'brick': skimage_data.brick,
    'grass': skimage_data.grass,
    'gravel': skimage_data.gravel,
    'coins': skimage_data.coins,
    'stars': skimage_data.hubble_deep_field,
    'tissue': skimage_data.immunohistochemistry,
}
DIGIT_LABEL = len(TEXTURES) + 1
CATEGORIES = [{'id': digit + 1, 'name': str(digit)} for digit in range(10)]
TRAIN_SHARE = 0.75  # of each texture picture's width and of the digit samples
MIN_SIZE = 64
PLACING_TRIES = 30


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder to make; it must not exist yet')
    parser.add_argument('--train', type=int, default=800, help='training images (default: 800)')
    parser.add_argument('--val', type=int, default=160, help='validation images (default: 160)')
    parser.add_argument('--size', type=int, default=160, help='image side in pixels (default: 160)')
    parser.add_argument(
        '--digits', type=int, nargs=2, default=(4, 8), metavar=('LEAST', 'MOST'),
        help='digits in an image, as far as there is room (default: 4 8)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    args = parser.parse_args()
    for name, minimum in (('train', 1), ('val', 1), ('size', MIN_SIZE), ('seed', 0)):
        if getattr(args, name) < minimum:
            parser.error(f'--{name} {getattr(args, name)}: give at least {minimum}')
    if not 0 <= args.digits[0] <= args.digits[1]:
        parser.error(f'--digits {args.digits[0]} {args.digits[1]}: give the lesser number first')
    if args.out.exists():
        parser.error(f'{args.out} exists already: remove it or choose another folder')
    return args


def main():
    args = parse_args()
    try:
        with replacing(args.out) as partial:
            for index, (split, count) in enumerate(
                (('training', args.train), ('validation', args.val))
            ):
                rng = np.random.default_rng([args.seed, index])
                write_split(partial, split, count, args.size, args.digits, rng)
    except OSError as error:
        sys.exit(f'error: cannot write {args.out}: {error}')
    print(f'{args.out}: {args.train} training and {args.val} validation images')


def write_split(
    root: Path, split: str, count: int, size: int, counts: tuple[int, int], rng: np.random.Generator
):
    """Write the images, label maps and COCO annotations of one split."""
    textures = [texture_area(load(), split) for load in TEXTURES.values()]
    digits = digit_samples(split)
    image_dir, label_dir = root / 'images' / split, root / 'annotations' / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)

    coco = {'images': [], 'annotations': [], 'categories': CATEGORIES}
    for image_id in track(range(count), count, f'{split} images'):
        image, labels = mosaic(textures, size, rng)
        name = f'{image_id:05d}'
        for digit, box, mask in paste_digits(image, labels, digits, counts, rng):
            rle = coco_mask.encode(np.asfortranarray(mask))
            coco['annotations'].append(
                {
                    'id': len(coco['annotations']) + 1,
                    'image_id': image_id,
                    'category_id': digit + 1,
                    'bbox': box,
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
                }
            )
        coco['images'].append(
            {'id': image_id, 'file_name': f'{name}.jpg', 'width': size, 'height': size}
        )
        write_image(image_dir / f'{name}.jpg', image.round().astype(np.uint8))
        write_image(label_dir / f'{name}.png', labels)
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def write_image(path: Path, image: np.ndarray):
    if not cv2.imwrite(str(path), image):
        raise OSError(f'could not write {path}')


def texture_area(picture: np.ndarray, split: str) -> np.ndarray:
    """The grey part of a picture for a split: its left for training, its right for validation."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    border = int(picture.shape[1] * TRAIN_SHARE)
    return picture[:, :border] if split == 'training' else picture[:, border:]


def digit_samples(split: str) -> list[tuple[int, np.ndarray]]:
    """The (class, 8×8 image in 0–1) pairs of a split."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    border = int(len(order) * TRAIN_SHARE)
    chosen = order[:border] if split == 'training' else order[border:]
    return [(int(digits.target[i]), (digits.images[i] / 16).astype(np.float32)) for i in chosen]


def mosaic(textures: list, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A Voronoi mosaic of two to four different textures.

    Returns:
        The image, float32 [size, size, 3], and its label map, uint8 [size, size].
    """
    count = rng.integers(2, 5)
    chosen = rng.choice(len(textures), count, replace=False)
    seeds = rng.uniform(0, size, (count, 2))
    grid = np.stack(np.mgrid[:size, :size], axis=-1)
    region = np.linalg.norm(grid[:, :, None] - seeds, axis=-1).argmin(axis=-1)

    image = np.empty((size, size, 3), np.float32)
    labels = np.empty((size, size), np.uint8)
    for i, texture in enumerate(chosen):
        inside = region == i
        image[inside] = texture_patch(textures[texture], size, rng)[inside]
        labels[inside] = texture + 1
    return image, labels


def texture_patch(area: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a texture, scaled, turned and tinted, float32 [size, size, 3]."""
    side = min(int(size * rng.uniform(0.6, 1.1)), *area.shape)
    top = rng.integers(area.shape[0] - side + 1)
    left = rng.integers(area.shape[1] - side + 1)
    patch = np.rot90(area[top : top + side, left : left + side], rng.integers(4))
    patch = cv2.resize(np.ascontiguousarray(patch), (size, size), interpolation=cv2.INTER_AREA)
    tint = rng.uniform(0.55, 1.0, 3).astype(np.float32)
    return patch[..., None].astype(np.float32) * tint


def paste_digits(
    image: np.ndarray,
    labels: np.ndarray,
    digits: list,
    counts: tuple[int, int],
    rng: np.random.Generator,
):
    """Paste digits whose boxes do not touch, in place; ``counts`` are the least and the most.

    Yields:
        The digit, its box [x, y, width, height] and its mask, uint8 as large as the image.
    """
    size = len(image)
    taken = np.zeros((size, size), bool)
    for _ in range(rng.integers(counts[0], counts[1] + 1)):
        digit, sample = digits[rng.integers(len(digits))]
        height = int(size * rng.uniform(0.2, 0.4))
        width = int(height * rng.uniform(0.75, 1.0))
        ink = cv2.resize(sample, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        for _ in range(PLACING_TRIES):
            top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
            window = slice(top, top + height), slice(left, left + width)
            if not taken[window].any():
                break
        else:
            continue  # no room left
        taken[window] = True
        background = image[window].mean(axis=(0, 1))
        image[window] += ink[..., None] * (contrasting_colour(background, rng) - image[window])
        mask = np.zeros((size, size), np.uint8)
        mask[window] = ink > 0.4
        labels[mask > 0] = DIGIT_LABEL
        yield digit, cv2.boundingRect(mask), mask


def contrasting_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(colour - background).mean() > 80:
            return colour


if __name__ == '__main__':
    main()
