"""Check image files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import BinaryIO, NamedTuple

import mmcv
from PIL import ExifTags, Image

from ..utils.errors import one_line
from ..utils.files import check_regular
from .problems import ERROR, WARNING, Problem

MANY_PIXELS = 100_000_000
SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}
FORMATS = (*SUFFIXES, 'PPM', 'GIF')  # that are read at all; JPEG may turn out to be MPO
UNTURNED = ('BMP', 'GIF', 'PPM', 'WEBP')
TURNED = ('JPEG', 'MPO', 'PNG', 'TIFF')  # by OpenCV, as their EXIF entry asks for
MOST_PIXELS = 2**30  # that OpenCV decodes
BYTES_OF_PPM = re.compile(rb'P[14]|P[2356](?:\s+#[^\n]*|\s+\d+){2,9}?\s+255\s')
ANIMATION = (b'acTL', b'fcTL', b'fdAT')  # chunks of PNG
BITS_PER_SAMPLE = 258  # TIFF's tag
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
        content = _read(path)
        check_still(io.BytesIO(content))
        form, mode, turned, pages = _decode_fully(content)
        pixels = mmcv.imfrombytes(content, flag='color')
    except _Unreadable as error:
        return [Problem(ERROR, error.args[0], where, error.args[1])]
    except Exception as error:  # PIL has many ways to refuse a file
        return [Problem(ERROR, 'damaged image', where, one_line(error))]
    if pixels is None:
        return [Problem(ERROR, 'damaged image', where, f'OpenCV does not decode this {form} file')]
    found = []
    height, width = pixels.shape[:2]
    if size is not None and (width, height) != tuple(size):
        why = ', after the rotation that its EXIF entry asks for' if turned else ''
        detail = f'{width}×{height}{why}; its annotations are for {size[0]}×{size[1]}'
        found.append(Problem(ERROR, 'image of another size', where, detail))
    elif turned:
        found.append(Problem(WARNING, 'EXIF rotation', where, 'it is applied'))
    elif turned is False:
        detail = f'OpenCV does not apply it to {form} files, as viewers do'
        found.append(Problem(WARNING, 'EXIF rotation', where, detail))
    if form in SUFFIXES and path.suffix.lower() not in SUFFIXES[form]:
        detail = f'a {form} file; it is decoded by its content'
        found.append(Problem(WARNING, 'wrong extension', where, detail))
    if mode in CONVERTED:
        found.append(Problem(WARNING, 'converted image', where, CONVERTED[mode]))
    if pages > 1:
        detail = f'it has {pages}, of which the first is read'
        found.append(Problem(WARNING, 'several pages', where, detail))
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


class _Unreadable(Exception):
    """There is nothing to decode: kind and detail of the problem."""


def _read(path: Path) -> bytes:
    try:
        check_regular(path)
        content = path.read_bytes()
    except OSError as error:
        raise _Unreadable('image cannot be read', error.strerror or str(error)) from error
    if not content:
        raise _Unreadable('empty image file', '0 bytes')
    return content


def _vanishes(width: int, height: int, scale: tuple[float, float]) -> bool:
    factor = min(scale[0] / max(width, height), scale[1] / min(width, height))
    return int(min(width, height) * factor + 0.5) < 1  # as mmcv rounds


class _Decoded(NamedTuple):
    form: str
    mode: str
    turned: bool | None  # by EXIF
    pages: int


def _decode_fully(content: bytes) -> _Decoded:
    """Look at all of an image: OpenCV fills what is missing with grey."""
    with open_image(io.BytesIO(content)) as image:
        check_pixels(image)
        if image.format == 'PPM' and not BYTES_OF_PPM.match(content):
            raise ValueError(
                'a PPM or PGM file of other levels than 255, which OpenCV does not spread: convert'
            )
        asked = orientation(image)
        turned = image.format in TURNED if asked not in (0, 1) else None
        is_deep = content[24:25] == b'\x10' if image.format == 'PNG' else _is_deep_tiff(image)
        pages = getattr(image, 'n_frames', 1) if image.format != 'MPO' else 1
        image.load()
        mode = 'I;16' if is_deep else image.mode
        return _Decoded(image.format, mode, turned, pages)


def _is_deep_tiff(image: Image.Image) -> bool:
    bits = image.tag_v2.get(BITS_PER_SAMPLE, 1) if image.format == 'TIFF' else 1
    return max(bits if isinstance(bits, tuple) else (bits,)) == 16


def check_still(file: BinaryIO) -> None:
    """Refuse an animated PNG: of a damaged one, OpenCV's decoder ends the process.

    Raises:
        ValueError: It is one.
    """
    if file.read(8) != b'\x89PNG\r\n\x1a\n':
        return
    while len(header := file.read(8)) == 8:
        length, kind = int.from_bytes(header[:4], 'big'), header[4:]
        if kind in ANIMATION:
            raise ValueError('an animated PNG: save its first frame as a PNG or JPEG of its own')
        file.seek(length + 4, io.SEEK_CUR)


def check_pixels(image: Image.Image) -> None:
    """Refuse an image by its header.

    Raises:
        ValueError: It is larger than OpenCV decodes.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f'{image.width}×{image.height}: OpenCV decodes up to 2^30 pixels')


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image of a format that toolboxes read, whatever its size.

    Others are refused: for PostScript, PIL would start a program.
    """
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(file, formats=FORMATS)


def guard_decoders() -> None:
    """Let this process open no PostScript and no animated PNG, for the toolboxes either."""
    decode = mmcv.imfrombytes
    if not hasattr(decode, '__wrapped__'):

        @wraps(decode)
        def decode_still(content: bytes, *args, **kwargs):
            check_still(io.BytesIO(content))
            return decode(content, *args, **kwargs)

        for module in (mmcv, mmcv.image, mmcv.image.io):  # mmcv.imread takes the last
            module.imfrombytes = decode_still
    Image.init()
    Image.OPEN.pop('EPS', None)
    Image.ID[:] = [form for form in Image.ID if form != 'EPS']


def orientation(image: Image.Image) -> int:
    """EXIF's, without what XMP says, which OpenCV does not read."""
    exif = image.getexif() if image.format == 'TIFF' else Image.Exif()
    if 'exif' in image.info:
        exif.load(image.info['exif'])
    return exif.get(ExifTags.Base.Orientation, 1)


def _may_be_turned(image: Image.Image) -> bool:
    """Whether there is an entry in which OpenCV may see an orientation, whatever PIL sees.

    In PNG it may stand behind the pixels.
    """
    segments = getattr(image, 'applist', None)
    return segments is None or any(name == 'APP1' for name, _ in segments)


def decoded_shape(path: str | Path) -> tuple[int, int]:
    """Height and width as mmcv decodes it, from the header alone unless it says to turn it."""
    check_regular(path)
    with open(path, 'rb') as file:
        check_still(file)
    with open_image(path) as image:
        check_pixels(image)
        if image.format in UNTURNED or not _may_be_turned(image):
            return image.height, image.width
    return mmcv.imread(str(path)).shape[:2]
