_base_ = ['./_base_/retinanet_poolformer-s12_fpn.py', './_base_/digits_detection.py']

# From random weights in minutes: LayerScale starts at 1, and neck and head are slim.
model = dict(
    backbone=dict(layer_scale_init_value=1.0, init_cfg=None),
    neck=dict(out_channels=96, num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32]),
    ),
)
