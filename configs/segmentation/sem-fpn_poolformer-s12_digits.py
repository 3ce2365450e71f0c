_base_ = ['./_base_/sem-fpn_poolformer-s12.py', './_base_/digits.py']

# From random weights in minutes: a larger LayerScale, and a slim neck and head with norms.
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(layer_scale_init_value=0.01, init_cfg=None),
    neck=dict(out_channels=96, norm_cfg=dict(type='GN', num_groups=16)),
    decode_head=dict(in_channels=[96, 96, 96, 96], channels=64, num_classes=7),
)
