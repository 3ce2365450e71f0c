"""Which maps the old backbone returns, found by running it, and which stages replace them."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import torch
from mmengine.config import Config

from ...archs import NUM_STAGES, is_integer
from ...registry import build_model, import_custom_modules, import_models, is_registered
from ...utils.config_tree import type_of
from ...utils.errors import join, one_line
from .rules import STRIDES, SwapError

PROBE_SIZE = 128


def match_stages(strides: tuple[int, ...], segments: bool) -> list[int]:
    """The stage of PoolFormer for each map that the old backbone returns.

    Args:
        strides: See :func:`strides_of`.
        segments: Whether the maps go to segmentation heads, which resize what they read.

    Raises:
        SwapError: PoolFormer has no such maps.
    """
    if not segments:
        unmatched = [stride for stride in strides if stride not in STRIDES]
        if unmatched or sorted(set(strides)) != list(strides):
            raise SwapError(
                f'its backbone has maps of stride {join(strides)}, for which its heads are '
                f'laid out; PoolFormer has {join(STRIDES)}'
            )
        return [STRIDES.index(stride) for stride in strides]
    # Where dilation keeps a stride, or a map is finer than any of PoolFormer's, depth decides:
    # the last map comes from the last stage.
    if len(strides) > NUM_STAGES or list(strides) != sorted(strides):
        raise SwapError(
            f'its backbone has maps of stride {join(strides)}, which is no feature pyramid'
        )
    stages: list[int] = []
    for stride in strides[:-1]:
        stage = sum(own < stride for own in STRIDES)
        stages.append(max([stage, *(before + 1 for before in stages[-1:])]))
    stages.append(NUM_STAGES - 1)
    for k in range(len(stages) - 2, -1, -1):
        stages[k] = min(stages[k], stages[k + 1] - 1)
    return stages


def strides_of(backbone: dict, scope: str, cfg: Config) -> tuple[int, ...]:
    """The strides of the maps that a backbone returns, found by running it.

    Args:
        backbone: Its part of the config.
        scope: The toolbox that the config is for.
        cfg: The config, for its ``custom_imports``.

    Raises:
        SwapError: It is not installed, or does not run.
    """
    import_models(scope)
    import_custom_modules(cfg, must_exist=False)  # a type that is then missing is reported
    if not is_registered(backbone['type'], scope):
        strides = _documented_strides(type_of(backbone), backbone)
        if strides:
            return strides
        raise SwapError(
            f'its backbone {backbone["type"]} is not registered: install the package it comes from'
        )
    backbone = backbone.to_dict()
    quiet = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    try:
        return _measure_strides(pickle.dumps(quiet), scope)
    except Exception as error:  # whatever a backbone's own code raises
        raise SwapError(
            f'its backbone {type_of(backbone)} does not run on a {PROBE_SIZE}×{PROBE_SIZE} image: '
            f'{one_line(error)}'
        ) from error


@cache
def _measure_strides(pickled: bytes, scope: str) -> tuple[int, ...]:
    backbone = pickle.loads(pickled)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:  # no memory, no arithmetic; some modules cannot
            return _run_probe(backbone, scope, 'meta')
        except Exception:
            return _run_probe(backbone, scope, 'cpu')


def _run_probe(backbone: dict, scope: str, device: str) -> tuple[int, ...]:
    with torch.device(device):
        module = build_model(copy.deepcopy(backbone), scope)
        module.eval()  # which returns nothing in some backbones
        channels = backbone.get('in_channels', 3)
        maps = module(torch.zeros(1, channels, PROBE_SIZE, PROBE_SIZE))
    maps = [maps] if torch.is_tensor(maps) else maps
    return tuple(round(PROBE_SIZE / tensor.shape[-1]) for tensor in maps)


def _documented_strides(kind: str, backbone: dict) -> tuple[int, ...] | None:
    """Strides of hierarchical backbones of packages that need not be installed."""
    indices = backbone.get('out_indices')
    if indices is None:
        return None
    indices = [indices] if is_integer(indices) else indices
    if kind in ('ConvNeXt', 'SwinTransformer'):
        return tuple(4 * 2 ** (i % NUM_STAGES) for i in indices)
    if kind == 'PoolFormer':  # mmpretrain counts the downsampling too
        return tuple(4 * 2 ** (i // 2) for i in indices)
    if kind == 'TIMMBackbone':  # timm's feature extractors start at stride 2
        return tuple(2 * 2**i for i in indices)
    return None
