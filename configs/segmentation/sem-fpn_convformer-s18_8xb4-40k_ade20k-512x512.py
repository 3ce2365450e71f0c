_base_ = './sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='convformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/convformer/convformer_s18.pth'
        ),
    ),
)
