# The recipe of ResNet-50, with the stochastic depth of Swin-T.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

custom_imports = dict(imports=['mmpoolformer'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s24',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/sail-sg/poolformer/releases/download/v1.0/'
            'poolformer_s24.pth.tar',
        ),
    ),
    panoptic_head=dict(in_channels=[64, 128, 320, 512]),
)
