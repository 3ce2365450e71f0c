"""A model file in the place of a detector or segmentor: the toolboxes' samples go in and out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from ..utils.errors import LaunchError
from .metadata import DETECTOR, SEGMENTOR
from .runtimes import Runtime, open_model


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Predicts with a model file, for mmengine's runner and the toolboxes' inferencers.

    Args:
        path: The file.
        allow_pickle: See :func:`~.runtimes.open_model`.

    Raises:
        LaunchError: It cannot be loaded, or does not predict boxes or labels.
    """

    def __init__(self, path: str, allow_pickle: bool = False):
        super().__init__()
        self.adopt(open_model(path, allow_pickle=allow_pickle))

    @classmethod
    def of(cls, runtime: Runtime) -> ExportedModel:
        """One that predicts with what is loaded already."""
        model = cls.__new__(cls)
        BaseModel.__init__(model)
        model.adopt(runtime)
        return model

    def adopt(self, runtime: Runtime) -> None:
        """Predict with a runtime."""
        self.runtime = runtime
        meta = runtime.meta
        if meta.kind not in (DETECTOR, SEGMENTOR):
            raise LaunchError(
                f'{runtime.path} holds {meta.kind} outputs, and no boxes or labels: export the '
                'model without --raw'
            )
        palette = [tuple(colour) for colour in meta.palette]
        self.dataset_meta = dict(classes=tuple(meta.classes), palette=palette)

    def forward(self, inputs, data_samples=None, mode: str = 'predict') -> list:
        """Predict on images as a test pipeline makes them.

        Args:
            inputs: Images ``[3, H, W]``, or a batch of them.
            data_samples: What is known about each; the predictions are added to it.
            mode: ``'predict'``.
        """
        if mode != 'predict':
            raise LaunchError(f'mode={mode!r}: {self.runtime.path} predicts, and does not train')
        samples = data_samples or [None] * len(inputs)
        return [self.predict_one(image, sample) for image, sample in zip(inputs, samples)]

    def test_step(self, data: dict) -> list:
        return self(data['inputs'], data.get('data_samples'))

    val_step = test_step

    def predict_one(self, image: Tensor, sample):
        """Predict on one image ``[3, H, W]`` in BGR.

        Raises:
            LaunchError: Its pixels are not those of an image file.
        """
        if image.is_floating_point():
            if not ((image >= 0) & (image <= 255)).all():
                raise LaunchError(
                    f'the test pipeline makes pixels of {image.min():.4g} to {image.max():.4g}, '
                    'and a file takes 0 to 255: leave out Normalize and to_float32, as the '
                    "model's data_preprocessor normalises"
                )
            image = image.round()
        outputs = self.runtime(image.flip(0)[None].to(torch.uint8).contiguous().numpy())
        add = add_detections if self.runtime.meta.kind == DETECTOR else add_labels
        return add(outputs, sample, tuple(image.shape[1:]), self.runtime.meta.options)


def add_detections(outputs: dict[str, np.ndarray], sample, shape: tuple, options: dict):
    """Add boxes and masks to a sample of mmdet's, at the size of the file that it came from."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = sample or DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
    meta = dict(sample.metainfo)
    meta.setdefault('scale_factor', (1.0, 1.0))
    outputs = {name: torch.from_numpy(np.array(value)) for name, value in outputs.items()}
    boxes, found = outputs['boxes'], InstanceData()
    if 'masks' in outputs:
        found.masks = _paste(outputs, meta, options['mask_threshold'])  # resizes the boxes too
    else:
        boxes = boxes / boxes.new_tensor(meta['scale_factor']).repeat(2)
    found.bboxes, found.scores, found.labels = boxes, outputs['scores'], outputs['labels']
    sample.pred_instances = found
    return sample


def _paste(outputs: dict[str, Tensor], meta: dict, threshold: float) -> Tensor:
    """Masks as large as the image file ``[N, H, W]``, by mmdet's own function."""
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    boxes, masks = outputs['boxes'], outputs['masks']
    if not len(boxes):
        return torch.zeros(0, *meta['ori_shape'][:2], dtype=torch.bool)
    # All that the function asks of a head: one mask a box, which is no logit any more.
    head = SimpleNamespace(class_agnostic=True)
    return FCNMaskHead._predict_by_feat_single(
        head,
        masks[:, None],
        boxes,
        outputs['labels'],
        meta,
        SimpleNamespace(mask_thr_binary=threshold),
        rescale=True,
        activate_map=True,
    )


def add_labels(outputs: dict[str, np.ndarray], sample, shape: tuple, options: dict):
    """Add the label map and the logits to a sample of mmseg's, at the size of its image file."""
    from mmseg.models.segmentors.base import BaseSegmentor
    from mmseg.structures import SegDataSample

    sample = sample or SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
    # All that mmseg's function asks of a segmentor.
    segmentor = SimpleNamespace(
        align_corners=options['align_corners'],
        decode_head=SimpleNamespace(threshold=options['threshold']),
    )
    logits = torch.from_numpy(np.array(outputs['logits']))
    (sample,) = BaseSegmentor.postprocess_result(segmentor, logits, [sample])
    return sample
