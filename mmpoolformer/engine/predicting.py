"""Predict on images and videos; write pictures, and results that other programs read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.infer import BaseInferencer
from mmengine.structures import PixelData

from ..utils.errors import LaunchError, one_line
from ..utils.files import replace_file, replacing, unique_name
from ..utils.progress import track
from .inference import draw
from .inputs import Frame, Inputs, open_video, read_images, read_video

PICTURES, LABELS = 'pictures', 'labels'
JPEG_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]
FRAMES_PER_SECOND = 25  # of a video that does not say


def predict(
    inferencer: BaseInferencer, inputs: Inputs, results: Results, batch_size: int = 1
) -> list[str]:
    """Predict on all inputs.

    Args:
        inferencer: See :func:`~mmpoolformer.engine.inference.load_inferencer`.
        inputs: See :func:`~mmpoolformer.engine.inputs.find_inputs`.
        results: Takes what is predicted.
        batch_size: Images that the model sees at once.

    Returns:
        The inputs that could not be read, each with the reason.
    """
    broken: list[str] = []
    if inputs.images:
        frames = track(read_images(inputs.images, broken), len(inputs.images), 'images')
        for frame, sample in run_model(inferencer, frames, batch_size, broken):
            results.add(frame, sample)
    for file in inputs.videos:
        reader = open_video(file, broken)
        if reader is None:
            continue
        frames = track(read_video(file, reader, broken), max(reader.frame_cnt, 0), file.name)
        with results.video(file, reader):
            for frame, sample in run_model(inferencer, frames, batch_size, broken):
                results.add(frame, sample)
    results.close()
    return broken


def run_model(
    inferencer: BaseInferencer, frames: Iterable[Frame], batch_size: int, broken: list[str]
) -> Iterator[tuple[Frame, object]]:
    """Predict on frames, in batches of one size, so that no prediction depends on padding.

    Yields:
        A frame and its data sample, on the CPU.
    """
    batch: list = []
    shape = None
    for frame in frames:
        try:
            data = inferencer.pipeline(frame.source)
            size = data['inputs'].shape
        except Exception as error:  # whatever the transforms of a config raise
            broken.append(f'{frame}: cannot be prepared for the model ({one_line(error)})')
            continue
        if batch and (len(batch) == batch_size or size != shape):
            yield from _forward(inferencer, batch, broken)
            batch = []
        shape = size
        batch.append((frame, data))
    if batch:
        yield from _forward(inferencer, batch, broken)


def _forward(
    inferencer: BaseInferencer, batch: list, broken: list[str]
) -> Iterator[tuple[Frame, object]]:
    try:
        with torch.no_grad():
            samples = inferencer.forward(inferencer.collate_fn([data for _, data in batch]))
    except ValueError as error:  # of the backbone, for images too small for it
        broken += [f'{frame}: {one_line(error)}' for frame, _ in batch]
        return
    for (frame, _), sample in zip(batch, samples):
        yield frame, sample.cpu()


class Results:
    """What is written for every image, the same for detection and segmentation.

    Args:
        inferencer: Draws the pictures.
        out: The folder of everything.
        wanted: The classes to keep, by position; ``None`` for all.
        pictures: Whether to draw.
    """

    def __init__(
        self,
        inferencer: BaseInferencer,
        out: Path,
        wanted: list[int] | None = None,
        pictures: bool = True,
    ):
        self.inferencer, self.out, self.wanted, self.pictures = inferencer, out, wanted, pictures
        self.classes = list(inferencer.model.dataset_meta['classes'])
        self.frames = self.videos = 0
        self.names: set[str] = set()
        self.name = ''
        self.film = None

    def add(self, frame: Frame, sample) -> None:
        """Write what was predicted on an image."""
        self.frames += 1
        if frame.index is None:
            self.name = unique_name(frame.file.stem, self.names)
        self.keep(frame, sample)
        if self.pictures:
            self._draw(frame, sample)

    def keep(self, frame: Frame, sample) -> None:
        """Reduce a sample to what is wanted, and keep or write that."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is written once."""
        raise NotImplementedError

    def _draw(self, frame: Frame, sample) -> None:
        picture = draw(self.inferencer, frame.rgb(), sample)
        picture = np.ascontiguousarray(picture[..., ::-1])
        if self.film is not None:
            self.film.write(picture)
            return
        with _new(self.out / PICTURES / f'{self.name}.jpg') as partial:
            mmcv.imwrite(picture, str(partial), JPEG_QUALITY)

    @contextmanager
    def video(self, file: Path, reader: mmcv.VideoReader) -> Iterator[None]:
        """Draw the frames that are added meanwhile into a video."""
        self.videos += 1
        self.name = unique_name(file.stem, self.names)
        if not self.pictures:
            yield
            return
        with _new(self.out / PICTURES / f'{self.name}.mp4') as partial:
            self.film = cv2.VideoWriter(
                str(partial),
                cv2.VideoWriter_fourcc(*'mp4v'),
                reader.fps if reader.fps > 0 else FRAMES_PER_SECOND,
                reader.resolution,
            )
            if not self.film.isOpened():
                raise LaunchError(f'OpenCV cannot write the video {partial}: add --no-pictures')
            try:
                yield
            finally:
                self.film.release()
                self.film = None


class Detections(Results):
    """Boxes and masks: COCO's results format, and a list of the images that it numbers."""

    def __init__(self, *args, score_thr: float = 0.3, **kwargs):
        super().__init__(*args, **kwargs)
        self.score_thr = score_thr
        self.images: list[dict] = []
        self.found: list[dict] = []

    def keep(self, frame: Frame, sample) -> None:
        if 'pred_instances' not in sample:
            raise LaunchError(
                f'this model predicts {", ".join(sample.keys())} and no instances: '
                "mmdet's DetInferencer draws it, in Python"
            )
        instances = sample.pred_instances
        is_kept = instances.scores >= self.score_thr
        if self.wanted is not None:
            is_kept &= torch.isin(instances.labels, torch.tensor(self.wanted))
        sample.pred_instances = instances[is_kept]
        height, width = sample.ori_shape[:2]
        image = dict(id=self.frames, file_name=str(frame.file), width=width, height=height)
        if frame.index is not None:
            image['frame'] = frame.index
        self.images.append(image)
        self.found += self._entries(image, self.inferencer.pred2dict(sample))

    def _entries(self, image: dict, found: dict) -> Iterator[dict]:
        of_image = {key: image[key] for key in ('file_name', 'frame') if key in image}
        masks = found.get('masks') or [None] * len(found['labels'])
        columns = found['labels'], found['scores'], found['bboxes'], masks
        for label, score, (x0, y0, x1, y1), mask in zip(*columns):
            entry = dict(
                image_id=image['id'],
                category_id=label + 1,
                bbox=[round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                score=round(score, 5),
                category_name=self.classes[label],
                **of_image,
            )
            yield entry if mask is None else dict(entry, segmentation=mask)

    def close(self) -> None:
        categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, 1)]
        write_json(self.out / 'images.json', dict(images=self.images, categories=categories))
        write_json(self.out / 'predictions.json', self.found)

    def __str__(self) -> str:
        return f'{len(self.found)} detections in {self.out / "predictions.json"}'


class LabelMaps(Results):
    """Label maps: a PNG file per image, and what their values mean."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dtype = np.uint8 if len(self.classes) < 256 else np.uint16
        self.nothing = int(np.iinfo(self.dtype).max)

    def keep(self, frame: Frame, sample) -> None:
        if 'pred_sem_seg' not in sample:
            raise LaunchError(
                f'this model predicts {", ".join(sample.keys())} and no classes of pixels: '
                "mmseg's MMSegInferencer draws it, in Python"
            )
        labels = sample.pred_sem_seg.data[0]
        if self.wanted is not None:
            is_kept = torch.isin(labels, torch.tensor(self.wanted))
            labels = torch.where(is_kept, labels, torch.full_like(labels, self.nothing))
            sample.pred_sem_seg = PixelData(data=labels[None])
        name = self.name if frame.index is None else f'{self.name}/{frame.index:06d}'
        with _new(self.out / LABELS / f'{name}.png') as partial:
            mmcv.imwrite(labels.numpy().astype(self.dtype), str(partial))

    def close(self) -> None:
        colours = self.inferencer.model.dataset_meta['palette']
        classes = [
            dict(value=i, name=name, colour=list(map(int, colour)))
            for i, (name, colour) in enumerate(zip(self.classes, colours))
        ]
        write_json(self.out / 'classes.json', dict(classes=classes, no_class=self.nothing))

    def __str__(self) -> str:
        return f'label maps in {self.out / LABELS}, their values in {self.out / "classes.json"}'


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """Lend the name of a file that is written whole or not at all, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, suffix=path.suffix) as partial:
        yield partial


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1) + '\n')
