_base_ = ['./_base_/mask-rcnn_poolformer-s12_fpn.py', './_base_/digits_instance.py']

# From random weights in minutes: LayerScale starts at 1, and neck and heads are slim.
roi_extractor = dict(out_channels=96)
model = dict(
    backbone=dict(layer_scale_init_value=1.0, init_cfg=None),
    neck=dict(out_channels=96),
    rpn_head=dict(in_channels=96, feat_channels=96),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=96, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(num_convs=2, in_channels=96, conv_out_channels=96, num_classes=10),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)
