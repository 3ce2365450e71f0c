"""Images and label maps to be checked, made in memory."""

import io

import cv2
import numpy as np
from hypothesis import HealthCheck, settings
from PIL import Image

CLASSES = ('cat', 'dog')


def encode(image, form='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(mode='RGB', size=(40, 30)):
    rng = np.random.default_rng(0)
    if mode == 'I;16':
        return Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze() if channels == 1 else pixels, mode)


def encode_deep(suffix):
    """Colours of 16 bits a channel."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (30, 40, 3), dtype=np.uint16)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    return encode(noise(), 'JPEG', exif=exif)


def label_map(*values, shape=(30, 40)):
    return np.resize(np.array(values, dtype=np.uint8), shape)


FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
JPEG, PNG = encode(noise(), 'JPEG'), encode(noise())
TWO_PAGES = dict(save_all=True, append_images=[noise()])
