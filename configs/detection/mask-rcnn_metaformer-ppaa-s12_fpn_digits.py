_base_ = './mask-rcnn_poolformer-s12_fpn_digits.py'

model = dict(backbone=dict(type='MetaFormer', arch='metaformer_ppaa_s12'))
