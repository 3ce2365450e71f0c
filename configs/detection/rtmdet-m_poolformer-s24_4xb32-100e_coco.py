# The recipe of RTMDet-L with ConvNeXt-B, with the stochastic depth of ConvNeXt-T.
_base_ = 'mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py'

custom_imports = dict(imports=['mmpoolformer'], allow_failed_imports=False)

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s24',
        out_indices=(1, 2, 3),
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/sail-sg/poolformer/releases/download/v1.0/'
            'poolformer_s24.pth.tar',
        ),
    ),
    neck=dict(in_channels=[128, 320, 512], norm_cfg=dict(_delete_=True, **norm_cfg)),
    bbox_head=dict(norm_cfg=dict(_delete_=True, **norm_cfg)),
)

max_epochs = 100
stage2_num_epochs = 10
base_lr = 1e-3

train_cfg = dict(max_epochs=max_epochs, dynamic_intervals=[(max_epochs - stage2_num_epochs, 1)])

optim_wrapper = dict(
    constructor='MetaFormerLayerDecay',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.8, decay_type='layer_wise'),
    optimizer=dict(lr=base_lr),
)
auto_scale_lr = dict(base_batch_size=128)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr * 0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=max_epochs - stage2_num_epochs,
        switch_pipeline={{_base_.train_pipeline_stage2}},
    ),
]
