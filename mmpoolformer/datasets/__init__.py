"""The check of data sets, by kind."""

from .check import check_config
from .coco import check_coco
from .images import check_image
from .label_maps import check_pair
from .problems import ERROR, WARNING, Problem

__all__ = [
    'ERROR',
    'WARNING',
    'Problem',
    'check_coco',
    'check_config',
    'check_image',
    'check_pair',
]
