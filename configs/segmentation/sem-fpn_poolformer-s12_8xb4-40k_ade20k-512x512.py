_base_ = [
    './_base_/sem-fpn_poolformer-s12.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_40k.py',
    './_base_/default_runtime.py',
]
