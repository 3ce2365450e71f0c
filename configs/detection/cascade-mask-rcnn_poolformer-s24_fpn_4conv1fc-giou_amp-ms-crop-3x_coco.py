# The recipe of ConvNeXt-T, with its layer-wise learning rates.
_base_ = (
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
)

custom_imports = dict(imports=['mmpoolformer'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s24',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/sail-sg/poolformer/releases/download/v1.0/'
            'poolformer_s24.pth.tar',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

optim_wrapper = dict(
    constructor='MetaFormerLayerDecay',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.7, decay_type='layer_wise'),
)
