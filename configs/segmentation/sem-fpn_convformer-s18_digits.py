_base_ = './sem-fpn_poolformer-s12_digits.py'

model = dict(backbone=dict(type='MetaFormer', arch='convformer_s18', layer_scale_init_value=None))
