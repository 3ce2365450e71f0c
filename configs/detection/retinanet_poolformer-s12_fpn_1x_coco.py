_base_ = [
    './_base_/retinanet_poolformer-s12_fpn.py',
    './_base_/coco_detection.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]
