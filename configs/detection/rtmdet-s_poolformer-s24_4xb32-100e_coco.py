# Neck and head of RTMDet-S.
_base_ = './rtmdet-m_poolformer-s24_4xb32-100e_coco.py'

model = dict(
    neck=dict(out_channels=128, num_csp_blocks=1),
    bbox_head=dict(in_channels=128, feat_channels=128, exp_on_reg=False),
)
