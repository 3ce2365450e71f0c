# The recipe of ConvNeXt-T, with its stage-wise learning rates.
_base_ = [
    './_base_/upernet_poolformer-s24.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_40k.py',
    './_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=160000, val_interval=16000)
default_hooks = dict(checkpoint=dict(interval=16000))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='MetaFormerLayerDecay',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise'),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, begin=1500, end=160000, eta_min=0.0, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=16)
