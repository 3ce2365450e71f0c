_base_ = './mask-rcnn_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='metaformer_ppaa_s12',
        init_cfg=dict(
            checkpoint='https://github.com/sail-sg/poolformer/releases/download/v1.0/'
            'metaformer_ppaa_s12_224.pth.tar'
        ),
    ),
)
