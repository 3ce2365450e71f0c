_base_ = './mask-rcnn_poolformer-s12_fpn_digits.py'

model = dict(backbone=dict(type='MetaFormer', arch='caformer_s18', layer_scale_init_value=None))
