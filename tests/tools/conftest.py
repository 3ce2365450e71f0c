"""Tiny models that several tools are run with: config and checkpoint."""

import pytest
from tiny_models import save_tiny_model


@pytest.fixture(scope='session')
def detector(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp('detector'), 'retinanet')


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp('segmentor'), 'sem-fpn')
