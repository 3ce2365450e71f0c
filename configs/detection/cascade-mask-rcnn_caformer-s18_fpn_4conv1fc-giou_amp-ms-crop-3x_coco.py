_base_ = './cascade-mask-rcnn_poolformer-s24_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(
    backbone=dict(
        type='MetaFormer',
        arch='caformer_s18',
        init_cfg=dict(
            checkpoint='https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth'
        ),
    ),
)
