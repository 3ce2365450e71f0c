_base_ = './mask2former_poolformer-s24_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='caformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth'
        ),
    ),
)
