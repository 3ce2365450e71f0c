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
from .rules import NEAREST, STRIDES, SwapError

PROBE_SIZE = 128


def match_stages(strides: tuple[int, ...], scope: str) -> list[int]:
    """The stage of PoolFormer for each map that the old backbone returns.

    Args:
        strides: See :func:`strides_of`.
        scope: The toolbox that the config is for: segmentation heads resize what they read.

    Returns:
        As many as there are maps, but for those of stride 64 and more at the end, which no
        stage has.

    Raises:
        SwapError: PoolFormer has no such maps.
    """
    if scope == 'mmseg':
        return _match_by_depth(strides)
    reachable = [stride for stride in strides if stride in STRIDES]
    deeper = [2 * STRIDES[-1] * 2**k for k in range(len(strides) - len(reachable))]
    if (
        not reachable
        or list(strides) != sorted(set(reachable)) + deeper
        or (deeper and reachable[-1] != STRIDES[-1])
    ):
        raise SwapError(
            f'its backbone has maps of stride {join(strides)}, for which its heads are '
            f'laid out; PoolFormer has {join(STRIDES)}',
            NEAREST[scope],
        )
    return [STRIDES.index(stride) for stride in reachable]


def _match_by_depth(strides: tuple[int, ...]) -> list[int]:
    """Where dilation keeps a stride, or a map is finer than any of PoolFormer's, depth decides.

    The last map comes from the last stage.
    """
    if len(strides) > NUM_STAGES or list(strides) != sorted(strides):
        raise SwapError(
            f'its backbone has maps of stride {join(strides)}, which is no feature pyramid',
            NEAREST['mmseg'],
        )
    if strides[-1] < STRIDES[0]:
        raise SwapError(
            f'its backbone returns nothing coarser than stride {strides[-1]}: it is an encoder '
            f'and decoder in one; PoolFormer has {join(STRIDES)}',
            NEAREST['mmseg'],
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
        SwapError: It is not installed, does not run, or returns other maps in training than in
            testing.
    """
    import_models(scope)
    import_custom_modules(cfg, must_exist=False)  # a type that is then missing is reported
    if not is_registered(backbone['type'], scope):
        strides = documented_strides(type_of(backbone), backbone)
        if strides:
            return strides
        raise SwapError(
            f'its backbone {backbone["type"]} is not registered: install the package it comes from'
        )
    kind = type_of(backbone)
    backbone = backbone.to_dict()
    quiet = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    if kind == 'TIMMBackbone':  # downloads weights unless it is told not to
        quiet['pretrained'] = False
    try:
        tested, trained = _measure_strides(pickle.dumps(quiet), scope)
    except Exception as error:  # whatever a backbone's own code raises
        raise SwapError(
            f'its backbone {kind} does not run on a {PROBE_SIZE}×{PROBE_SIZE} image: '
            f'{one_line(error)}'
        ) from error
    if tested != trained:
        raise SwapError(
            f'its backbone {kind} returns maps of stride {join(trained)} in training and '
            f'{join(tested)} in testing, which its heads tell apart',
            NEAREST[scope],
        )
    return tested


@cache
def _measure_strides(pickled: bytes, scope: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides in testing and in training."""
    backbone = pickle.loads(pickled)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:  # no memory, no arithmetic; some modules cannot
            return _run_probe(backbone, scope, 'meta')
        except Exception:
            return _run_probe(backbone, scope, 'cpu')


def _run_probe(backbone: dict, scope: str, device: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = []
    with torch.device(device):
        module = build_model(copy.deepcopy(backbone), scope)
        # Two images: in training the batch norm of a map of one position needs them.
        images = torch.zeros(2, backbone.get('in_channels', 3), PROBE_SIZE, PROBE_SIZE)
        for training in (False, True):
            module.train(training)
            found.append(_strides(module(images), len(images)))
    tested, trained = found
    return tested, trained


def _strides(maps, images: int) -> tuple[int, ...]:
    maps = [maps] if torch.is_tensor(maps) else maps
    if len(maps[0]) != images:  # branches, which its heads tell apart
        raise ValueError(f'it returns maps of {len(maps[0])} images for {images}')
    return tuple(round(PROBE_SIZE / tensor.shape[-1]) for tensor in maps)


def documented_strides(kind: str, backbone: dict) -> tuple[int, ...] | None:
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
