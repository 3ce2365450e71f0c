"""Bad images: each is found, and what passes the check is loaded by mmcv."""

import numpy as np
import pytest
from bad_files import FUZZ, JPEG, PNG, encode, noise, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmpoolformer.datasets import ERROR, WARNING, check_image


@pytest.mark.parametrize(
    'name, content, level, kind',
    [
        ('zero.jpg', b'', ERROR, 'empty image file'),
        ('truncated.jpg', JPEG[: len(JPEG) // 2], ERROR, 'damaged image'),
        ('truncated.png', PNG[: len(PNG) // 2], ERROR, 'damaged image'),
        ('text.jpg', b'<html>404</html>', ERROR, 'damaged image'),
        ('png.jpg', PNG, WARNING, 'wrong extension'),
        ('16bit.png', encode(noise('I;16')), WARNING, 'converted image'),
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
    'mode, name', [('RGB', 'rgb.png'), ('L', 'grey.png'), ('P', 'palette.png')]
)
def test_good_image(mode, name, tmp_path):
    image = noise().quantize(16) if mode == 'P' else noise(mode)
    (tmp_path / name).write_bytes(encode(image))
    assert check_image(tmp_path / name, (40, 30)) == []


@pytest.mark.parametrize('content, size', [(PNG, (30, 40)), (rotated(), (40, 30))])
def test_size_other_than_the_annotations_is_an_error(content, size, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    kinds = [p.kind for p in check_image(tmp_path / 'image', size) if p.level == ERROR]
    assert kinds == ['image of another size']


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
