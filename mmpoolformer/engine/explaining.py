"""Where a model looks: Grad-CAM of backbone stages for one prediction, and their features.

Grad-CAM (arXiv 1610.02391) is the library ``grad-cam``. Its hooks sit on the last block of each
stage, which is called in the same way on the plain and on the fused path.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.structures import PixelData
from torch import Tensor, nn

from ..models import MetaFormer
from ..utils.config_tree import type_of
from ..utils.errors import DataError, LaunchError, first_line
from ..utils.files import replacing
from .inference import draw
from .inputs import Frame

# With all its dependencies it would bring another OpenCV and, beside the classic stack, numpy 2.
INSTALL_HINT = 'pip install --no-deps grad-cam ttach'

# The names of the library. HiResCAM (arXiv 2011.08891) weighs every position by its own gradient,
# where Grad-CAM has one weight a channel for the whole image.
METHODS = {'grad-cam': 'GradCAM', 'hires-cam': 'HiResCAM'}


class Explanation(NamedTuple):
    """What one image gave.

    Attributes:
        picture: The image with the prediction that is explained ``[H, W, 3]``, RGB.
        title: That prediction in words.
        cams: Grad-CAM of each stage ``[stages, H, W]``, from 0 to 1.
        features: The norm over channels of each stage's output ``[h, w]``.
    """

    picture: np.ndarray
    title: str
    cams: np.ndarray
    features: list[np.ndarray]


def import_grad_cam():
    """Import the library, which is an optional extra.

    Raises:
        LaunchError: It is missing or broken; says how to get it.
    """
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise LaunchError(
            f'the library grad-cam cannot be imported ({first_line(error)}): {INSTALL_HINT}'
        ) from error
    return pytorch_grad_cam


class Explainer:
    """Explains predictions of one model.

    Args:
        inferencer: See :func:`~mmpoolformer.engine.inference.load_inferencer`.
        method: A key of :data:`METHODS`.

    Raises:
        LaunchError: ``grad-cam`` is missing, or the backbone is none of ours.
    """

    def __init__(self, inferencer: BaseInferencer, method: str = 'grad-cam'):
        self.inferencer = inferencer
        self.method = getattr(import_grad_cam(), METHODS[method])
        backbone = getattr(inferencer.model, 'backbone', None)
        if not isinstance(backbone, MetaFormer):
            raise LaunchError(
                f'the backbone is a {type_of(inferencer.cfg.model.get("backbone"))}: the stages of '
                'PoolFormer and MetaFormer can be explained; tools/swap_backbone.py puts one in'
            )
        backbone.with_cp = False  # the hooks would see every block twice
        if inferencer.cfg.default_scope == 'mmseg':
            inferencer.model.test_cfg = ConfigDict(inferencer.model.test_cfg or {}, mode='whole')
        self.layers = [blocks[-1] for _, blocks in backbone.stages]

    def explain(self, frame: Frame, category: int | None = None) -> Explanation:
        """Explain the best detection, or the pixels of a class, in one image.

        Args:
            frame: The image.
            category: The class, by position. ``None`` takes the best detection of all, or the
                class with the most pixels.

        Raises:
            DataError: There is no such prediction in this image.
            LaunchError: The heads compute their scores without gradients.
        """
        inferencer, preprocess = self.inferencer, self.inferencer.model.data_preprocessor
        batch = preprocess(inferencer.collate_fn([inferencer.pipeline(frame.source)]), False)
        images, samples = batch['inputs'], batch['data_samples']
        if inferencer.cfg.default_scope == 'mmdet':
            choice = BestDetection(frame, category, self._classes)
        else:
            choice = PixelsOfClass(frame, category, self._classes)
        cam = self._grad_cam(_Predict(inferencer.model, samples))
        try:
            cams = cam(images, [choice])[0]
            activations = [features[0] for features in cam.activations_and_grads.activations]
        finally:
            cam.activations_and_grads.release()
        height, width = _resized(samples[0])
        shares = height / images.shape[-2], width / images.shape[-1]
        rgb = frame.rgb()
        size = rgb.shape[1::-1]
        picture = draw(inferencer, rgb, choice.chosen)
        return Explanation(
            picture=picture,
            title=choice.title,
            cams=np.stack([cv2.resize(_without_padding(cam, shares), size) for cam in cams]),
            features=[_without_padding(a.norm(dim=0).numpy(), shares) for a in activations],
        )

    @property
    def _classes(self) -> list[str]:
        return self.inferencer.model.dataset_meta['classes']

    def _grad_cam(self, model: nn.Module):
        class PerLayer(self.method):
            """One map a layer, where the library returns the mean of all."""

            def aggregate_multi_layers(self, cam_per_target_layer):
                return np.concatenate(cam_per_target_layer, axis=1)

        cam = PerLayer(model, self.layers)
        cam.compute_input_gradient = True  # frozen stages have no gradients by themselves
        return cam


class _Predict(nn.Module):
    """A detector or segmentor as the library calls it: from images to what was predicted."""

    def __init__(self, model: nn.Module, samples: list):
        super().__init__()
        self.model, self.samples = model, samples

    def forward(self, images: Tensor) -> list:
        features = []
        hook = self.model.backbone.register_forward_hook(
            lambda module, args, outputs: features.extend(outputs)
        )
        try:
            with _scores_with_gradients():
                found = self.model(images, copy.deepcopy(self.samples), mode='predict')
        finally:
            hook.remove()
        # The library pairs gradients with stages by their order: each stage needs one, be it zero.
        return [(found[0], 0 * sum(map(torch.sum, features)))]


@contextmanager
def _scores_with_gradients() -> Iterator[None]:
    """Let mmdet's dense heads keep the gradients of their scores, which they drop before NMS."""
    name = 'select_single_mlvl'
    modules = [module for key, module in sys.modules.items() if key.startswith('mmdet.models')]
    users = [module for module in modules if hasattr(module, name)]
    select = getattr(users[0], name) if users else None
    for module in users:
        setattr(module, name, lambda tensors, index, detach=True: select(tensors, index, False))
    try:
        yield
    finally:
        for module in users:
            setattr(module, name, select)


class BestDetection:
    """The score of the best detection."""

    def __init__(self, frame: Frame, category: int | None, classes: list[str]):
        self.frame, self.category, self.classes = frame, category, classes
        self.title, self.chosen = '', None

    def __call__(self, output: tuple) -> Tensor:
        sample, zero = output
        instances = sample.get('pred_instances')
        if instances is None:
            raise LaunchError(f'the model predicts {", ".join(sample.keys())} and no instances')
        if self.category is not None:
            instances = instances[instances.labels == self.category]
        if len(instances) == 0:
            what = 'nothing' if self.category is None else f'no {self.classes[self.category]!r}'
            raise DataError(
                f'{self.frame}: {what} is detected. A threshold of the config may be too high: '
                '--cfg-options model.test_cfg.score_thr=0 (of two stages: test_cfg.rcnn.score_thr)'
            )
        best = instances.scores.argmax()
        score = instances.scores[best]
        self.chosen = sample.detach().cpu()
        self.chosen.pred_instances = instances[best[None]].detach().cpu()
        self.title = f'{self.classes[int(instances.labels[best])]} {float(score.detach()):.2f}'
        return _with_gradient(score) + zero


class PixelsOfClass:
    """The sum of a class's logits over the pixels that the model gives it."""

    def __init__(self, frame: Frame, category: int | None, classes: list[str]):
        self.frame, self.category, self.classes = frame, category, classes
        self.title, self.chosen = '', None

    def __call__(self, output: tuple) -> Tensor:
        sample, zero = output
        if 'seg_logits' not in sample:
            raise LaunchError(f'the model predicts {", ".join(sample.keys())} and no classes')
        target = import_grad_cam().utils.model_targets.SemanticSegmentationTarget
        labels = sample.pred_sem_seg.data[0].cpu()
        category = int(labels.flatten().mode().values) if self.category is None else self.category
        is_here = labels == category
        if not is_here.any():
            here = ', '.join(self.classes[i] for i in labels.unique())
            raise DataError(
                f'{self.frame}: no pixel is {self.classes[category]!r}; there are {here}'
            )
        logits = _with_gradient(sample.seg_logits.data)
        if len(logits) == 1:  # one logit for two classes
            logits = torch.cat((-logits, logits))
        nothing = torch.full_like(labels, len(self.classes))
        self.chosen = sample.detach().cpu()
        self.chosen.pred_sem_seg = PixelData(data=torch.where(is_here, labels, nothing)[None])
        self.title = f'{self.classes[category]}, {100 * is_here.float().mean():.0f} % of the pixels'
        return target(category, is_here.numpy().astype(np.float32))(logits) + zero


def _with_gradient(scores: Tensor) -> Tensor:
    if not scores.requires_grad:
        raise LaunchError(
            'the heads of this model compute their scores without gradients, as soft-NMS does: '
            'Grad-CAM needs them; take another NMS in model.test_cfg'
        )
    return scores


def _resized(sample) -> tuple[int, int]:
    """Height and width of an image as the model sees it, without what Pad or others add."""
    factors = sample.metainfo.get('scale_factor')
    if factors is None:
        return sample.img_shape[:2]
    sizes = zip(sample.ori_shape, factors[::-1], sample.img_shape)
    height, width = (min(round(side * factor), seen) for side, factor, seen in sizes)
    return height, width


def _without_padding(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """The part of a map that is the image: the upper left."""
    height, width = (math.ceil(side * share) for side, share in zip(values.shape, shares))
    return np.ascontiguousarray(values[:height, :width])


def save_cams(explanation: Explanation, image: np.ndarray, stages: list[int], path: Path) -> None:
    """Draw the prediction, and beside it Grad-CAM of stages over the image.

    Args:
        explanation: See :meth:`Explainer.explain`.
        image: The image, RGB.
        stages: Which stages.
        path: The PNG file.
    """
    overlay = import_grad_cam().utils.image.show_cam_on_image
    panels = [(explanation.title, explanation.picture)]
    for stage in stages:
        cam = explanation.cams[stage]
        note = '' if cam.any() else ': nothing speaks for it'
        picture = overlay(image.astype(np.float32) / 255, cam, use_rgb=True)
        panels.append((f'stage {stage}{note}', picture))
    _save_panels(panels, image.shape, path)


def save_features(explanation: Explanation, image: np.ndarray, path: Path) -> None:
    """Draw the norm over channels of each stage's output beside the image; bright is large."""
    panels = [('image', image)]
    for stage, values in enumerate(explanation.features):
        height, width = values.shape
        panels.append((f'stage {stage}, {height}×{width}', values))
    _save_panels(panels, image.shape, path)


def _save_panels(panels: list, shape: tuple, path: Path) -> None:
    height, width = shape[:2]
    side = 3.2  # inches
    figure = Figure(figsize=(side * len(panels), side * height / width + 0.5))
    for axis, (title, picture) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axis.imshow(picture, extent=(0, width, height, 0), interpolation='nearest')
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, suffix='.png') as partial:
        figure.savefig(partial, dpi=100)
