"""Bad images: each is found, and what passes the check is loaded by mmcv."""

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import nullcontext

import cv2
import mmcv
import numpy as np
import pytest
from bad_files import FUZZ, JPEG, PNG, TWO_PAGES, encode, encode_deep, noise, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile, Resize
from PIL import ExifTags, Image

from mmpoolformer.datasets import ERROR, WARNING, check_image
from mmpoolformer.datasets.images import decoded_shape
from mmpoolformer.datasets.readers import kept_ratio_scales


@pytest.mark.parametrize(
    'name, content, level, kind',
    [
        ('zero.jpg', b'', ERROR, 'empty image file'),
        ('truncated.jpg', JPEG[: len(JPEG) // 2], ERROR, 'damaged image'),
        ('truncated.png', PNG[: len(PNG) // 2], ERROR, 'damaged image'),
        ('text.jpg', b'<html>404</html>', ERROR, 'damaged image'),
        ('png.jpg', PNG, WARNING, 'wrong extension'),
        ('16bit.png', encode(noise('I;16')), WARNING, 'converted image'),
        ('16bit-colours.png', encode_deep('.png'), WARNING, 'converted image'),
        ('16bit.tif', encode_deep('.tif'), WARNING, 'converted image'),
        ('pages.tif', encode(noise(), 'TIFF', **TWO_PAGES), WARNING, 'several pages'),
        ('deep.ppm', b'P6\n2 2\n1023\n' + bytes(24), ERROR, 'damaged image'),
        ('few.pgm', b'P5 # 255 \n2 2\n15\n' + bytes(4), ERROR, 'damaged image'),
        ('floats.ppm', b'Pf\n2 2\n-1.0\n' + bytes(16), ERROR, 'damaged image'),
        ('rgba.png', encode(noise('RGBA')), WARNING, 'converted image'),
        ('cmyk.jpg', encode(noise('CMYK'), 'JPEG'), WARNING, 'converted image'),
        ('rotated.jpg', rotated(), WARNING, 'EXIF rotation'),
        ('one.png', encode(noise(size=(1, 1))), WARNING, 'very small image'),
        ('wide.png', encode(Image.new('L', (20000, 6000))), WARNING, 'very large image'),
    ],
)
def test_bad_image(name, content, level, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    (problem,) = check_image(tmp_path / name)
    assert (problem.level, problem.kind) == (level, kind)
    assert str(tmp_path / name) in problem.where and problem.detail


@pytest.mark.parametrize(
    'mode, name',
    [('RGB', 'rgb.png'), ('L', 'grey.png'), ('P', 'palette.png'), ('RGB', 'a.ppm'), ('L', 'a.pgm')],
)
def test_good_image(mode, name, tmp_path):
    image = noise().quantize(16) if mode == 'P' else noise(mode)
    (tmp_path / name).write_bytes(encode(image, 'PNG' if name.endswith('png') else 'PPM'))
    assert check_image(tmp_path / name, (40, 30)) == []


@pytest.mark.parametrize('kind, count', [(3, 1), (3, 0), (5, 1), (99, 1)])
@pytest.mark.parametrize('magic', [b'Exif\0\0', b'Exif\0\xff'])
def test_a_shape_is_the_one_that_is_decoded_whatever_exif_says(kind, count, magic, tmp_path):
    entry = struct.pack('<HHIHH', 0x0112, kind, count, 6, 0)
    exif = magic + b'II*\0' + struct.pack('<IH', 8, 1) + entry + bytes(4)
    segment = b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif
    (tmp_path / 'a.jpg').write_bytes(JPEG[:2] + segment + JPEG[2:])
    assert decoded_shape(tmp_path / 'a.jpg') == mmcv.imread(str(tmp_path / 'a.jpg')).shape[:2]


@pytest.mark.parametrize('content, size', [(PNG, (30, 40)), (rotated(), (40, 30))])
def test_size_other_than_the_annotations_is_an_error(content, size, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    (problem,) = (p for p in check_image(tmp_path / 'image', size) if p.level == ERROR)
    width, height = size[::-1]
    assert problem.kind == 'image of another size'
    assert f'{width}×{height}' in problem.detail and f'{size[0]}×{size[1]}' in problem.detail


@pytest.mark.parametrize(
    'size, scale, level',
    [
        ((2, 20000), (1333, 800), ERROR),
        ((3, 1000), (160, 160), ERROR),
        ((3, 1000), (1333, 800), None),
        ((4, 1000), (160, 160), None),
    ],
)
def test_images_that_vanish_when_they_are_resized(size, scale, level, tmp_path):
    noise(size=size).save(tmp_path / 'thin.png')
    transform = dict(type='Resize', scale=scale, keep_ratio=True)
    scales = kept_ratio_scales(dict(pipeline=[transform]))
    problems = check_image(tmp_path / 'thin.png', size, scales)
    assert [problem.level for problem in problems] == ([level] if level else [])
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    with pytest.raises(cv2.error) if level else nullcontext():  # what training would end with
        Resize(scale=scale, keep_ratio=True)(dict(img=pixels))


@pytest.mark.parametrize(
    'transform, scales',
    [
        (dict(type='Resize', scale=(40, 30)), []),
        (dict(type='mmdet.Resize', scale=(30, 40), keep_ratio=True), [(40, 30)]),
        (
            dict(type='RandomResize', scale=(40, 20), ratio_range=(0.5, 2), keep_ratio=True),
            [(20, 10)],
        ),
        (
            dict(type='RandomChoiceResize', scales=[(9, 5), (9, 4)], keep_ratio=True),
            [(9, 5), (9, 4)],
        ),
    ],
)
def test_scales_of_a_pipeline(transform, scales):
    assert kept_ratio_scales(dict(pipeline=[dict(type='RandomApply', transforms=[transform])])) == (
        scales
    )


def with_orientation(form, path, entry):
    """A file of 60×40 pixels that asks to be turned, in EXIF or in XMP."""
    exif, options = Image.Exif(), {}
    exif[ExifTags.Base.Orientation] = 6
    if entry == 'XMP':
        options['xmp'] = b'<x tiff:Orientation="6"/>'
    else:
        options['exif'] = exif
    Image.new('RGB', (60, 40)).save(path, form, **options)


@pytest.mark.parametrize('entry', ['EXIF', 'XMP'])
@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_the_shape_is_that_which_mmcv_decodes(form, entry, tmp_path):
    path = tmp_path / f'a.{form.lower()}'
    with_orientation(form, path, entry)
    height, width = mmcv.imread(str(path)).shape[:2]
    assert decoded_shape(path) == (height, width)
    problems = check_image(path, size=(width, height))
    assert not any(problem.level == ERROR for problem in problems)
    said = [problem.detail for problem in problems if problem.kind == 'EXIF rotation']
    if entry == 'XMP':
        assert not said
    elif form == 'WEBP':
        assert 'does not apply it to WEBP files' in said[0]


def test_a_rotation_that_stands_behind_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.new('RGB', (60, 40)).save(file, 'PNG', exif=exif)
    content = file.getvalue()
    start = content.index(b'eXIf') - 4
    (length,) = struct.unpack('>I', content[start : start + 4])
    chunk, end = content[start : start + length + 12], content.index(b'IEND') - 4
    behind = content[:start] + content[start + len(chunk) : end] + chunk + content[end:]
    (tmp_path / 'a.png').write_bytes(behind)
    assert decoded_shape(tmp_path / 'a.png') == mmcv.imread(str(tmp_path / 'a.png')).shape[:2]


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n'


def test_postscript_is_no_image(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, 'check_call', lambda *args, **_: started.append(args))
    (tmp_path / 'a.jpg').write_bytes(POSTSCRIPT)
    (problem,) = check_image(tmp_path / 'a.jpg')
    assert problem.level == ERROR and not started


def test_toolboxes_open_no_postscript_in_a_tool():
    code = (
        'import io, mmcv; from mmpoolformer.datasets.images import guard_decoders; '
        f'guard_decoders(); mmcv.imfrombytes({POSTSCRIPT!r}, backend="pillow")'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'UnidentifiedImageError' in run.stderr


def test_a_bomb_is_found_by_its_header(tmp_path):
    header = io.BytesIO()
    Image.new('1', (1, 1)).save(header, 'PNG')
    content = bytearray(header.getvalue())
    content[16:24] = struct.pack('>II', 36000, 36000)
    content[29:33] = struct.pack('>I', zlib.crc32(bytes(content[12:29])))
    (tmp_path / 'a.png').write_bytes(content)
    (problem,) = check_image(tmp_path / 'a.png')
    assert '36000×36000: OpenCV decodes up to 2^30' in problem.detail


def test_a_decoder_that_fails_is_quoted(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ArithmeticError('no such marker')

    monkeypatch.setattr(mmcv, 'imfrombytes', fail)
    (tmp_path / 'a.png').write_bytes(PNG)
    (problem,) = check_image(tmp_path / 'a.png')
    assert problem[:2] == (ERROR, 'damaged image') and 'no such marker' in problem.detail


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'a.jpg')
    (problem,) = check_image(tmp_path / 'a.jpg')
    assert problem.level == ERROR and 'no regular file' in problem.detail


def test_missing_image(tmp_path):
    (problem,) = check_image(tmp_path / 'gone.jpg')
    assert (problem.level, problem.kind) == (ERROR, 'image cannot be read')


@st.composite
def image_files(draw):
    """Images of many kinds, as they are or damaged."""
    mode = draw(st.sampled_from(['RGB', 'L', 'RGBA', 'CMYK', 'I;16', '1', 'P']))
    form = draw(st.sampled_from(['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF']))
    size = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    image = Image.new('I;16' if mode == 'I;16' else mode, size, draw(st.integers(0, 255)))
    try:
        content = bytearray(encode(image, form))
    except (OSError, KeyError, ValueError):  # no such mode in this format
        content = bytearray(encode(image.convert('RGB'), form))
    for position, value in draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@given(image_files())
@settings(FUZZ, max_examples=400)
def test_an_image_that_passes_is_loaded_by_mmcv(tmp_path_factory, content):

    path = tmp_path_factory.getbasetemp() / 'fuzzed.png'
    path.write_bytes(content)
    if not any(problem.level == ERROR for problem in check_image(path)):
        pixels = LoadImageFromFile()(dict(img_path=str(path)))['img']
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


@pytest.mark.parametrize('default_image', [True, False])
def test_an_animated_png_is_refused(default_image, tmp_path):
    """One wrong byte in it, and OpenCV ends the process."""
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'green', 'blue')]
    options = dict(save_all=True, append_images=frames[1:], default_image=default_image)
    frames[0].save(tmp_path / 'a.png', **options)
    (problem,) = check_image(tmp_path / 'a.png')
    assert problem.level == ERROR and 'animated PNG' in problem.detail
    with pytest.raises(ValueError, match='animated PNG'):
        decoded_shape(tmp_path / 'a.png')


@pytest.mark.parametrize(
    'read', ['imread(sys.argv[1])', 'imfrombytes(open(sys.argv[1], "rb").read())']
)
def test_toolboxes_decode_no_animated_png_in_a_tool(read, tmp_path):
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'green')]
    frames[0].save(tmp_path / 'a.png', save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / 'b.png')
    code = (
        'import sys, mmcv; from mmpoolformer.datasets.images import guard_decoders; '
        f'guard_decoders(); guard_decoders(); print(mmcv.{read}.shape)'
    )
    runs = [
        subprocess.run(
            [sys.executable, '-c', code, tmp_path / name], capture_output=True, text=True
        )
        for name in ('a.png', 'b.png')
    ]
    assert 'ValueError: an animated PNG' in runs[0].stderr and runs[1].stdout == '(8, 8, 3)\n'
