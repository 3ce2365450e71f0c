"""Configs of the toolboxes that several test files swap."""

from functools import lru_cache

from mmengine.config import Config

from mmpoolformer.adapt.zoo import find_config

MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
FASTER_RCNN_C4 = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
DETR = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
SSD = 'mmdet::ssd/ssd300_coco.py'
CONVNEXT = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
YOLOX = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
MASK2FORMER_SWIN = 'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py'
RTMDET = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
QDTRACK = 'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py'
SOFT_TEACHER = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'
DEEPLABV3PLUS = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
UPERNET = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
FASTFCN = 'mmseg::fastfcn/fastfcn_r50-d32_jpu_aspp_4xb4-80k_ade20k-512x512.py'
BISENET = 'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py'
ICNET = 'mmseg::icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py'
STDC = 'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py'
SEMANTIC_FPN = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'


@lru_cache
def read(name):
    return Config.fromfile(find_config(name), import_custom_modules=False)
