"""Check image files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import mmcv
from PIL import ExifTags, Image

from ..utils.errors import one_line
from .problems import ERROR, WARNING, Problem

MANY_PIXELS = 100_000_000
SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}
CONVERTED = {
    'I;16': '16 bits a channel, of which 8 are used',
    'I;16B': '16 bits a channel, of which 8 are used',
    'RGBA': 'an alpha channel, which is dropped',
    'LA': 'an alpha channel, which is dropped',
    'CMYK': 'CMYK, which is converted to RGB without a colour profile',
}


def check_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    scales: Sequence[tuple[float, float]] = (),
) -> list[Problem]:
    """Check that an image decodes completely, and to the size that annotations are for.

    Args:
        path: The file.
        size: Width and height that it should have after EXIF rotation, which mmcv applies.
        scales: What it is resized into with its ratio kept, as longer and shorter side.
    """
    path = Path(path)
    where = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        return [Problem(ERROR, 'image cannot be read', where, error.strerror or str(error))]
    if not content:
        return [Problem(ERROR, 'empty image file', where, '0 bytes')]
    try:
        form, mode, rotated = _decode_fully(content)
    except Exception as error:  # PIL has many ways to refuse a file
        return [Problem(ERROR, 'damaged image', where, one_line(error))]
    try:
        pixels = mmcv.imfrombytes(content, flag='color')
    except Exception as error:
        return [Problem(ERROR, 'damaged image', where, one_line(error))]
    if pixels is None:
        return [Problem(ERROR, 'damaged image', where, f'OpenCV does not decode this {form} file')]
    found = []
    height, width = pixels.shape[:2]
    if size is not None and (width, height) != tuple(size):
        why = ', after the rotation that its EXIF entry asks for' if rotated else ''
        detail = f'{width}×{height}{why}; its annotations are for {size[0]}×{size[1]}'
        found.append(Problem(ERROR, 'image of another size', where, detail))
    elif rotated:
        found.append(Problem(WARNING, 'EXIF rotation', where, 'it is applied'))
    if form in SUFFIXES and path.suffix.lower() not in SUFFIXES[form]:
        detail = f'a {form} file; it is decoded by its content'
        found.append(Problem(WARNING, 'wrong extension', where, detail))
    if mode in CONVERTED:
        found.append(Problem(WARNING, 'converted image', where, CONVERTED[mode]))
    if width * height > MANY_PIXELS:
        detail = f'{width}×{height}: {3 * width * height / 1e9:.1f} GB when decoded'
        found.append(Problem(WARNING, 'very large image', where, detail))
    thin = [scale for scale in scales if _vanishes(width, height, scale)]
    if thin:
        detail = f'{width}×{height}: its short side vanishes when it is resized into {thin[0]}'
        found.append(Problem(ERROR, 'image too thin', where, f'{detail}; crop or remove it'))
    elif min(width, height) < 2:
        detail = f'{width}×{height}: resized to a strip or a single colour'
        found.append(Problem(WARNING, 'very small image', where, detail))
    return found


def _vanishes(width: int, height: int, scale: tuple[float, float]) -> bool:
    factor = min(scale[0] / max(width, height), scale[1] / min(width, height))
    return int(min(width, height) * factor + 0.5) < 1  # as mmcv rounds


def _decode_fully(content: bytes) -> tuple[str, str, bool]:
    """Format, mode and whether EXIF rotates it. OpenCV fills what is missing with grey."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(content)) as image:
        rotation = image.getexif().get(ExifTags.Base.Orientation, 1)
        image.load()
        return image.format, image.mode, rotation not in (0, 1)


def decoded_shape(path: str | Path) -> tuple[int, int]:
    """Height and width after EXIF rotation, from the header alone."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)
