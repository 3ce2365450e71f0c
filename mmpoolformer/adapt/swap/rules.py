"""The tables of a swap: what it refuses, and what it gives to the config."""

from __future__ import annotations

STRIDES = (4, 8, 16, 32)  # of the four stages
OFFICIAL_SIZE = 224  # side of the images that the published weights were trained on
# ImageNet's, in RGB: the input that the published weights know.
PREPROCESSING = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, rgb_to_bgr=False
)

ROUNDING = dict(type='ResizeToMultiple', size_divisor=STRIDES[-1])

# The paper's learning rate and batch size for each kind of model, all with AdamW.
RECIPES = {
    'Semantic FPN': (2e-4, 32),
    'Mask R-CNN': (2e-4, 16),
    'RetinaNet': (1e-4, 16),
}

SEMANTIC_FPN = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
_YOLO = (
    'a YOLO backbone and its neck are one design, sized together',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
)
_REAL_TIME = (
    'a real-time network whose branches are part of the method, not a pyramid under a head',
    SEMANTIC_FPN,
)
_PLAIN_VIT = (
    'a plain ViT: all its maps have stride 16, and neck and head are made for that',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
)
# Types of models, necks, heads and backbones: why they take no pyramid, and what comes nearest.
REFUSED: dict[str, tuple[str, str | None]] = {
    'GLIP': (
        'multimodal: image and text branches were trained together',
        'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py',
    ),
    'GroundingDINO': (
        'multimodal: image and text branches were trained together',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    ),
    'MultimodalEncoderDecoder': (
        'multimodal: image and text branches were trained together',
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    ),
    'Detectron2Wrapper': (
        'a Detectron2 model: its backbone is built by Detectron2',
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    ),
    'BaseReID': ('a classifier of cut-out persons: it reads no feature pyramid', None),
    'RFP': (
        'it feeds its output back into DetectoRS_ResNet, which has inputs for that',
        'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py',
    ),
    'YOLOV3Neck': _YOLO,
    'CSPDarknet': _YOLO,
    'CSPNeXt': _YOLO,
    'Darknet': _YOLO,
    'HourglassNet': (
        'stacked hourglasses: every map has stride 4',
        'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py',
    ),
    'TridentResNet': (
        'three branches of one stride with shared weights, which its head merges',
        'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    ),
    'LRASPPHead': (
        'it pools windows of 49×49 positions, more than PoolFormer leaves at stride 32',
        SEMANTIC_FPN,
    ),
    'UNet': ('an encoder and decoder in one, down to stride 1', SEMANTIC_FPN),
    'VPD': ('a diffusion model, which reads a text prompt too', SEMANTIC_FPN),
    **dict.fromkeys(
        ('ICNet', 'BiSeNetV1', 'BiSeNetV2', 'STDCContextPathNet', 'STDCNet', 'CGNet', 'DDRNet'),
        _REAL_TIME,
    ),
    **dict.fromkeys(('PIDNet', 'ERFNet', 'FastSCNN'), _REAL_TIME),
    **dict.fromkeys(('VisionTransformer', 'ViT', 'BEiT', 'MAE'), _PLAIN_VIT),
}

# Necks that look at skipped maps, if only for their size.
INDEXED_NECKS = ('NASFCOS_FPN',)

# Layer-wise learning rates that count the blocks of the backbone that is replaced.
BACKBONE_CONSTRUCTORS = ('LayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')


class SwapError(ValueError):
    """The config cannot take PoolFormer.

    Attributes:
        reason: Why, in one line.
        nearest: A zoo config of the same task that can, or ``None``.
    """

    def __init__(self, reason: str, nearest: str | None = None):
        self.reason, self.nearest = reason, nearest
        super().__init__(
            f'cannot swap the backbone: {reason}' + (f'. Start from {nearest}' if nearest else '')
        )
