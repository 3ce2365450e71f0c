_base_ = './rtmdet-m_poolformer-s24_4xb32-100e_coco.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='caformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth'
        ),
    ),
)
