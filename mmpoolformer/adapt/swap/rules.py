"""The tables of a swap: what it refuses, and what it gives to the config."""

from __future__ import annotations

STRIDES = (4, 8, 16, 32)  # of the four stages
OFFICIAL_SIZE = 224  # side of the images that the published weights were trained on
# ImageNet's, in RGB: the input that the published weights know.
PREPROCESSING = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, rgb_to_bgr=False
)

ROUNDING = dict(type='ResizeToMultiple', size_divisor=STRIDES[-1])

# The paper's learning rate and batch size for each kind of model, all with AdamW. It has none for
# RTMDet: those are mmdet's for rtmdet_l_convnext_b_4xb32-100e and rtmdet_l_swin_b_4xb32-100e.
RECIPES = {
    'Semantic FPN': (2e-4, 32),
    'Mask R-CNN': (2e-4, 16),
    'RetinaNet': (1e-4, 16),
    'RTMDet': (1e-3, 128),
}

# What a refusal names as the nearest config that works, where it knows none of the same task.
NEAREST = {
    'mmdet': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmseg': 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
}
_PLAIN_VIT = (
    'a plain ViT: all its maps have stride 16, and neck and head are made for that',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
)
# Types of models, heads and backbones that no pyramid fits, whatever maps a backbone returns:
# why, and what comes nearest. All others are refused by the strides that are measured.
REFUSED: dict[str, tuple[str, str | None]] = {
    'MultimodalEncoderDecoder': (
        "its image branch is CLIP's plain ViT, trained together with the text branch",
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    ),
    'Detectron2Wrapper': (
        'a Detectron2 model: its backbone is built by Detectron2',
        NEAREST['mmdet'],
    ),
    'BaseReID': ('a classifier of cut-out persons: it reads no feature pyramid', None),
    'LRASPPHead': (
        'it pools windows of 49×49 positions (lraspp_head.py): at stride 32 images would need '
        'sides of 1568 pixels',
        NEAREST['mmseg'],
    ),
    'VPD': ('a diffusion model, which reads a text prompt too', NEAREST['mmseg']),
    **dict.fromkeys(('VisionTransformer', 'ViT', 'BEiT', 'MAE'), _PLAIN_VIT),
}

# Models of images and texts: their weights were trained together, so there are none to start from.
MULTIMODAL = ('GLIP', 'GroundingDINO')

# Necks that list what they read from the deepest map on.
REVERSED_NECKS = ('YOLOV3Neck',)

# Necks that look at skipped maps, if only for their size.
INDEXED_NECKS = ('NASFCOS_FPN',)

# Layer-wise learning rates that count the blocks of the backbone that is replaced.
BACKBONE_CONSTRUCTORS = ('LayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')
# What takes their place.
LAYER_DECAY = 'MetaFormerLayerDecay'


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
