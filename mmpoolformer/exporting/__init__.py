"""A whole trained model as one file for other runtimes, and such files as models of the toolboxes.

The packages that it takes are optional: ``pip install 'mmpoolformer[export]'``.
"""

from .metadata import SUFFIXES, ImageSizeError, Metadata, is_model_file
from .runtimes import Runtime, open_model
from .samples import ExportedModel

__all__ = [
    'SUFFIXES',
    'ExportedModel',
    'ImageSizeError',
    'Metadata',
    'Runtime',
    'is_model_file',
    'open_model',
]
