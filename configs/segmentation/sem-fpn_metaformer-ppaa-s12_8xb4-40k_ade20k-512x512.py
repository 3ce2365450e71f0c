_base_ = './sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

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
