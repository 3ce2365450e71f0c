_base_ = ['./_base_/retinanet_poolformer-s12_fpn.py', './_base_/digits.py']

# From random weights in minutes: a larger LayerScale, and a slim neck and head with norms.
norm_cfg = dict(type='GN', num_groups=16)
model = dict(
    backbone=dict(layer_scale_init_value=0.01, init_cfg=None),
    neck=dict(out_channels=96, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=10,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        # Digits are 16 to 54 pixels large.
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
