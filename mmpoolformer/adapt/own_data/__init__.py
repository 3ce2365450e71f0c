"""Put one's own images and annotations into a config of mmdet or mmseg."""

from .api import adapt, own_data_changes, use_dataset
from .errors import OwnDataError

__all__ = ['OwnDataError', 'adapt', 'own_data_changes', 'use_dataset']
