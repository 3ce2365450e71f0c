# The recipe of ResNet-50, with the stochastic depth of Swin-T.
_base_ = [
    './_base_/mask2former_poolformer-s24.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_40k.py',
    './_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdet.models', 'mmpoolformer'])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomChoiceResize',
        scales=[int(512 * x * 0.1) for x in range(5, 21)],
        resize_type='ResizeShortestEdge',
        max_size=2048,
    ),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict(pipeline=train_pipeline)))
train_cfg = dict(max_iters=160000, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000, save_best='mIoU'))

queries = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(_delete_=True, max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0),
            query_embed=queries,
            query_feat=queries,
            level_embed=queries,
        ),
        norm_decay_mult=0.0,
    ),
)
param_scheduler = [dict(type='PolyLR', power=0.9, begin=0, end=160000, eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(base_batch_size=16)
