_base_ = './mask-rcnn_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='caformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth'
        ),
    ),
)
