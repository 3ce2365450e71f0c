"""A whole model as one function of an image, from its pixels to what it predicts."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import LaunchError
from .metadata import BACKBONE, DETECTOR, OFFER_RAW, RAW, SEGMENTOR
from .rewrites import found

IMAGE = 'image'  # the name of the input


class Preprocessor(nn.Module):
    """Pixels ``[1, 3, H, W]`` in RGB, 0–255, as the network takes them: order, scale and padding.

    Args:
        source: The model's own data preprocessor.
    """

    def __init__(self, source: nn.Module):
        super().__init__()
        mean, std = getattr(source, 'mean', None), getattr(source, 'std', None)
        self.register_buffer('mean', mean, persistent=False)
        self.register_buffer('std', std, persistent=False)
        self.is_rgb = is_rgb(source)
        test_cfg = getattr(source, 'test_cfg', None) or {}  # of mmseg: padding in tests alone
        is_of_mmseg = hasattr(source, 'test_cfg')
        self.size = test_cfg.get('size')
        divisor = test_cfg.get('size_divisor') if is_of_mmseg else source.pad_size_divisor
        self.divisor = divisor or 1
        self.pad_value = source.pad_val if is_of_mmseg else source.pad_value

    def forward(self, image: Tensor) -> Tensor:
        x = image.float()  # first, as TensorRT knows no bytes behind its input
        x = x if self.is_rgb else x.flip(1)
        if self.mean is not None:
            x = (x - self.mean) / self.std
        height, width = x.shape[-2:]
        if self.size is not None:
            below = torch.sym_max(self.size[0] - height, 0)
            right = torch.sym_max(self.size[1] - width, 0)
        else:
            # Of positive numbers only: ONNX divides integers towards zero.
            below = (height + self.divisor - 1) // self.divisor * self.divisor - height
            right = (width + self.divisor - 1) // self.divisor * self.divisor - width
        if self.size is None and self.divisor == 1:
            return x
        return F.pad(x, (0, right, 0, below), value=self.pad_value)


def is_rgb(preprocessor: nn.Module) -> bool:
    """Whether a network takes images in RGB, given that OpenMMLab reads them in BGR.

    Raises:
        LaunchError: The model has no data preprocessor of images.
    """
    for name in ('_channel_conversion', 'channel_conversion'):  # mmengine's, mmseg 1.2's
        if hasattr(preprocessor, name):
            return getattr(preprocessor, name)
    raise LaunchError(
        f'{type(preprocessor).__name__} is no preprocessor of images: DetDataPreprocessor and '
        'SegDataPreProcessor go into the file'
    )


PIXELS = 'uint8 [1, 3, H, W], RGB, 0-255, resized as the test pipeline does'


class Wrapper(nn.Module):
    """What is exported.

    Attributes:
        kind: One of those in :mod:`.metadata`.
        input: What the image has to be, in words.
        described: What comes out by name, in words.
    """

    kind = ''
    input = PIXELS
    described: ClassVar[dict[str, str]] = {}

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.preprocess = Preprocessor(model.data_preprocessor)

    def options(self) -> dict:
        """What is to be done after the graph, see :class:`~.metadata.Metadata`."""
        return {}

    def describe(self, example: Tensor) -> dict[str, str]:
        """What comes out by name, in words."""
        return self.described


class Detector(Wrapper):
    """Boxes, scores and labels, and masks where the model has them."""

    kind = DETECTOR
    described: ClassVar = {
        'boxes': 'float32 [N, 4], left, top, right, bottom in pixels of the image',
        'scores': 'float32 [N], falling',
        'labels': 'int64 [N], positions in classes',
    }
    MASKS = 'float32 [N, h, w] in 0–1, each stretched over its box'

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if getattr(model, 'with_mask', False):
            if not hasattr(model, 'roi_head'):
                raise self._masks_of_images()
            self.described = dict(self.described, masks=self.MASKS)

    def options(self) -> dict:
        if 'masks' not in self.described:
            return {}
        return dict(mask_threshold=self.model.roi_head.test_cfg.mask_thr_binary)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (results,) = self._predict(self.preprocess(image), image.shape[-2:])
        there = found(results.scores)
        fields = [results.bboxes, results.scores, results.labels]
        if 'masks' in self.described:
            fields.append(results.masks)
        return tuple(field[there] for field in fields)

    def _predict(self, x: Tensor, shape: tuple) -> list:
        from mmdet.structures import DetDataSample

        height, width = shape
        sample = DetDataSample(
            metainfo=dict(
                img_id=0,
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=tuple(x.shape[-2:]),
                batch_input_shape=tuple(x.shape[-2:]),
                scale_factor=(1.0, 1.0),
            )
        )
        self.model.add_pred_to_datasample = lambda samples, results: results
        try:
            found = self.model.predict(x, [sample], rescale=False)
        finally:
            del self.model.add_pred_to_datasample
        if hasattr(found[0], 'masks') and 'masks' not in self.described:
            raise self._masks_of_images()
        return found

    def _masks_of_images(self) -> LaunchError:
        return LaunchError(
            f'{type(self.model).__name__} finds masks of the whole image, and a file holds those '
            f'of boxes alone: {OFFER_RAW}'
        )


class Segmentor(Wrapper):
    """The class of every pixel, and the logits of all classes."""

    kind = SEGMENTOR
    described: ClassVar = {
        'labels': 'int64 [1, H, W], positions in classes',
        'logits': 'float32 [1, C, H, W]',
    }

    def __init__(self, model: nn.Module):
        super().__init__(model)
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise LaunchError(
                f'model.test_cfg.mode={mode!r}: one graph takes the image at once. Export with '
                '--cfg-options model.test_cfg.mode=whole, and compare, or --raw at the size of '
                'the windows'
            )

    def options(self) -> dict:
        threshold = getattr(self._head(), 'threshold', None)  # of heads that tell two classes apart
        return dict(align_corners=self.model.align_corners, threshold=threshold)

    def _head(self) -> nn.Module:
        head = self.model.decode_head
        return head[-1] if isinstance(head, nn.ModuleList) else head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        x = self.preprocess(image)
        meta = dict(
            img_shape=(height, width), ori_shape=(height, width), pad_shape=tuple(x.shape[-2:])
        )
        logits = self.model.encode_decode(x, [meta])[..., :height, :width]
        if logits.shape[1] > 1:
            return logits.argmax(1), logits
        return (logits.sigmoid() > self._head().threshold).long()[:, 0], logits


WHOLE = {'mmdet': Detector, 'mmseg': Segmentor}


class Raw(Wrapper):
    """The maps of the heads, before they become boxes or labels."""

    kind = RAW

    def describe(self, example: Tensor) -> dict[str, str]:
        with torch.no_grad():
            shapes = [tuple(output.shape) for output in self(example)]
        at = 'x'.join(map(str, example.shape[2:]))
        return {f'output{i}': f'float32 {shape} of {at}' for i, shape in enumerate(shapes)}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.preprocess(image)
        return tuple(tensors_of(self._heads(x)))

    def _heads(self, x: Tensor) -> object:
        features = self.model.extract_feat(x)
        for name in ('bbox_head', 'mask_head', 'rpn_head', 'decode_head'):
            head = getattr(self.model, name, None)
            if isinstance(head, nn.Module):
                return head(features)
        return features


class Backbone(nn.Module):
    """The features of a backbone, of an image that is normalised already."""

    kind = BACKBONE
    input = 'float32 [1, 3, H, W], normalised'

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = getattr(model, 'backbone', model)
        stages = self.model.out_indices
        self.described = {f'feature{i}': f'float32, stride {4 * 2**i}' for i in stages}

    options, describe = Wrapper.options, Wrapper.describe

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.model(image)))


def tensors_of(value: object) -> list[Tensor]:
    """The tensors in lists and tuples, in their order."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for inner in values or () for tensor in tensors_of(inner)]
