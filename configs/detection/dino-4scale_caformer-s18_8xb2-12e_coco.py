_base_ = './dino-4scale_poolformer-s24_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='caformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth'
        ),
    ),
)
