_base_ = [
    './_base_/mask-rcnn_poolformer-s12_fpn.py',
    './_base_/coco_instance.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=2e-4))
