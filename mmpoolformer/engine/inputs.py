"""Find and read what a model shall predict on: images, folders, globs and videos."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np

from ..datasets import ERROR, check_image
from ..utils.errors import LaunchError
from ..utils.files import check_regular

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.gif')


# Of playlists FFmpeg opens the members, also where they stand behind tags of sound files.
PLAYLISTS = (b'#EXTM3U', b'ffconcat', b'\xef\xbb\xbf#EXTM3U', b'ID3')


class Inputs(NamedTuple):
    """The files of a command line."""

    images: list[Path]
    videos: list[Path]


class Frame(NamedTuple):
    """An image, or one frame of a video.

    Attributes:
        file: The image or the video.
        source: What the inferencers' pipelines take: a path, or BGR pixels.
        index: The number of the frame in its video, from 0.
    """

    file: Path
    source: str | np.ndarray
    index: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.index is None else f'{self.file}, frame {self.index}'

    def rgb(self) -> np.ndarray:
        """The pixels, as the inferencers draw on them."""
        pixels = mmcv.imread(self.source) if isinstance(self.source, str) else self.source
        return np.ascontiguousarray(pixels[..., ::-1])


def find_inputs(names: list[str]) -> Inputs:
    """Find the images and videos behind paths, folders and globs, each once.

    A folder stands for the images and videos right in it.

    Raises:
        LaunchError: A name stands for no image and no video.
    """
    files = list(dict.fromkeys(file for name in names for file in _expand(name)))
    is_video = [file.suffix.lower() in VIDEOS for file in files]
    images = [file for file, video in zip(files, is_video) if not video]
    return Inputs(images, [file for file, video in zip(files, is_video) if video])


def _expand(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        files = _known(sorted(path.iterdir()))
        what = f'{name} has no image and no video'
    elif path.exists():
        return [path]
    elif has_magic(name):
        files = _known(sorted(map(Path, glob(name, recursive=True))))
        what = f'no image and no video matches {name}'
    else:
        raise LaunchError(
            f'input not found: {name}. Give an image, a folder, a quoted glob or a video'
        )
    if not files:
        raise LaunchError(f'{what}: files that end in {" ".join((*IMAGES, *VIDEOS))} are taken')
    return files


def _known(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in IMAGES + VIDEOS and file.is_file()]


def read_images(files: list[Path], broken: list[str]) -> Iterator[Frame]:
    """Pass on the images that decode completely; add the others to ``broken``, with the reason."""
    for file in files:
        # OpenCV fills the missing end of an image with grey: it has to be looked for.
        problems = [problem for problem in check_image(file) if problem.level == ERROR]
        if problems:
            broken.append(f'{file}: {problems[0].kind} ({problems[0].detail})')
        else:
            yield Frame(file, str(file))


def open_video(file: Path, broken: list[str]) -> mmcv.VideoReader | None:
    """Open a video; without a frame to read it is added to ``broken``."""
    try:
        check_regular(file)
    except OSError as error:
        broken.append(str(error))
        return None
    with file.open('rb') as content:
        if content.read(64).lstrip().startswith(PLAYLISTS):
            broken.append(f'{file}: a list of other files, and no video')
            return None
    if mmcv.VideoReader(str(file)).vcap.read()[0]:
        return mmcv.VideoReader(str(file))  # anew, as going back loses frames of some files
    broken.append(f'{file}: no frame of this video can be read')
    return None


def read_video(file: Path, reader: mmcv.VideoReader, broken: list[str]) -> Iterator[Frame]:
    """Pass on the frames of a video; one that ends too early is added to ``broken``."""
    count = 0
    while (pixels := reader.vcap.read()[1]) is not None:  # mmcv's own would go back
        yield Frame(file, pixels, count)
        count += 1
    if count < reader.frame_cnt:
        broken.append(f'{file}: the video breaks off after {count} of {reader.frame_cnt} frames')
