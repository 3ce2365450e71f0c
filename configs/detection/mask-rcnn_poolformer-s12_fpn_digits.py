_base_ = ['./_base_/mask-rcnn_poolformer-s12_fpn.py', './_base_/digits.py']

# From random weights in minutes: a larger LayerScale, and a slim neck and heads with norms.
norm_cfg = dict(type='GN', num_groups=16)
roi_extractor = dict(out_channels=96)
model = dict(
    backbone=dict(layer_scale_init_value=0.01, init_cfg=None),
    neck=dict(out_channels=96, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=96, feat_channels=96),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=96, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(
            num_convs=2, in_channels=96, conv_out_channels=96, num_classes=10, norm_cfg=norm_cfg
        ),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)

val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
