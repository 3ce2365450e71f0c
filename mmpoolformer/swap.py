"""Put PoolFormer into an existing mmdet or mmseg config.

A pyramid of features is read by the neck, or without one by the heads. What they read is
found by running the backbone that is there; the stages of PoolFormer that fit take its place.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from .archs import (
    ARCHS,
    NUM_STAGES,
    Arch,
    is_integer,
    known_names,
    official_weights,
    resolve_arch,
)
from .config_tree import type_of, walk
from .metaformer import MetaFormer
from .registry import TOOLBOXES
from .token_mixers import is_of_one_size, one_per_stage

STRIDES = (4, 8, 16, 32)  # of the four stages
OFFICIAL_SIZE = 224  # side of the images that the published weights were trained on
# ImageNet's, in RGB: the input that the published weights know.
PREPROCESSING = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, rgb_to_bgr=False
)

ROUNDING = dict(type='ResizeToMultiple', size_divisor=STRIDES[-1])

SEMANTIC_FPN = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
_YOLO = (
    'a YOLO backbone and its neck are one design, sized together',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
)
_REAL_TIME = (
    'a real-time network whose branches are part of the method, not a pyramid under a head',
    SEMANTIC_FPN,
)
_PLAIN_VIT = (
    'a plain ViT: all its maps have stride 16, and neck and head are made for that',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
)
# Types of models, necks, heads and backbones: why they take no pyramid, and what comes nearest.
REFUSED: dict[str, tuple[str, str | None]] = {
    'GLIP': (
        'multimodal: image and text branches were trained together',
        'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py',
    ),
    'GroundingDINO': (
        'multimodal: image and text branches were trained together',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    ),
    'MultimodalEncoderDecoder': (
        'multimodal: image and text branches were trained together',
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    ),
    'Detectron2Wrapper': (
        'a Detectron2 model: its backbone is built by Detectron2',
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    ),
    'BaseReID': ('a classifier of cut-out persons: it reads no feature pyramid', None),
    'RFP': (
        'it feeds its output back into DetectoRS_ResNet, which has inputs for that',
        'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py',
    ),
    'YOLOV3Neck': _YOLO,
    'CSPDarknet': _YOLO,
    'CSPNeXt': _YOLO,
    'Darknet': _YOLO,
    'HourglassNet': (
        'stacked hourglasses: every map has stride 4',
        'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py',
    ),
    'TridentResNet': (
        'three branches of one stride with shared weights, which its head merges',
        'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    ),
    'LRASPPHead': (
        'it pools windows of 49×49 positions, more than PoolFormer leaves at stride 32',
        SEMANTIC_FPN,
    ),
    'UNet': ('an encoder and decoder in one, down to stride 1', SEMANTIC_FPN),
    'VPD': ('a diffusion model, which reads a text prompt too', SEMANTIC_FPN),
    **dict.fromkeys(
        ('ICNet', 'BiSeNetV1', 'BiSeNetV2', 'STDCContextPathNet', 'STDCNet', 'CGNet', 'DDRNet'),
        _REAL_TIME,
    ),
    **dict.fromkeys(('PIDNet', 'ERFNet', 'FastSCNN'), _REAL_TIME),
    **dict.fromkeys(('VisionTransformer', 'ViT', 'BEiT', 'MAE'), _PLAIN_VIT),
}

# Necks that look at skipped maps, if only for their size.
INDEXED_NECKS = ('NASFCOS_FPN',)

# Layer-wise learning rates that count the blocks of the backbone that is replaced.
BACKBONE_CONSTRUCTORS = ('LayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')


class SwapError(ValueError):
    """The config cannot take PoolFormer.

    Attributes:
        reason: Why, in one line.
        nearest: A zoo config of the same task that can, or ``None``.
    """

    def __init__(self, reason: str, nearest: str | None = None):
        self.reason, self.nearest = reason, nearest
        super().__init__(
            f'cannot swap the backbone: {reason}' + (f'. Start from {nearest}' if nearest else '')
        )


class Change(NamedTuple):
    """One entry that a swap changed.

    Attributes:
        key: Dotted path in the config, as for ``--cfg-options``.
        old: Value before, ``None`` where there was none.
        new: Value after.
        reason: Why.
    """

    key: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f'{self.key}: {_short(self.old)} → {_short(self.new)} ({self.reason})'


def swap_backbone(
    cfg: Config,
    arch: str | dict | Arch = 's12',
    checkpoint: str | None = 'official',
    keep_optimizer: bool = False,
    **backbone_kwargs,
) -> Config:
    """Replace the backbone of a detector or segmentor by PoolFormer or another MetaFormer.

    Adapted are: ``out_indices``, so that the neck or the heads get the strides they read and
    no stage is idle; the ``in_channels`` of necks and heads; what belongs to the old weights
    (their normalisation of images, ``pretrained``, ``load_from``); ``custom_imports``; and
    the optimizer, to the paper's AdamW recipe for this kind of model. DETR-like models, for
    which the paper has none, keep their own AdamW. Everything else stays.

    Args:
        cfg: A complete config. It is not changed.
        arch: See :class:`MetaFormer`.
        checkpoint: Weights to start from: ``'official'`` for the ImageNet weights of the
            official repository, a path or URL, or ``None`` for random ones.
        keep_optimizer: Leave ``optim_wrapper`` and ``param_scheduler`` as they are.
        backbone_kwargs: More arguments for :class:`MetaFormer`.

    Returns:
        A new config.

    Raises:
        SwapError: The model cannot take a pyramid backbone; says why and what can.
        ValueError: Unknown architecture, or no official weights for it with these mixers.
        TypeError: ``cfg`` is no config, or the backbone has no such argument.
    """
    return _Swap(cfg, arch, checkpoint, keep_optimizer, backbone_kwargs).cfg


def swap_changes(
    cfg: Config,
    arch: str | dict | Arch = 's12',
    checkpoint: str | None = 'official',
    keep_optimizer: bool = False,
    **backbone_kwargs,
) -> list[Change]:
    """Explain what :func:`swap_backbone` changes; the arguments and errors are the same.

    Returns:
        The changes, in the order of the model and then of the schedule.
    """
    return _Swap(cfg, arch, checkpoint, keep_optimizer, backbone_kwargs).changes


class _Swap:
    """The steps of a swap, on a copy of the config."""

    def __init__(self, cfg, arch, checkpoint, keep_optimizer, backbone_kwargs):
        if not isinstance(cfg, Config):
            raise TypeError(
                f'cfg must be a mmengine Config, got {type(cfg).__name__}: '
                'use Config.fromfile(PATH)'
            )
        self.arch = resolve_arch(arch)
        self.mixers = _mixers_of(self.arch, backbone_kwargs.get('token_mixers'))
        _check_arguments(arch, checkpoint, backbone_kwargs)
        if checkpoint == 'official':
            _check_official_mixers(arch, self.mixers, backbone_kwargs.get('input_size'))
        # to_dict copies; without a text, Config would read the file again.
        self.cfg = Config(cfg.to_dict(), cfg_text=cfg.text or None, filename=cfg.filename)
        self.changes: list[Change] = []

        self.scope = _scope_of(self.cfg)
        self.at = _find_backbone(self.cfg)
        self.model = self.get(self.at)
        self.segments = self.scope == 'mmseg'
        stages = self._match_stages()
        if self.model.get('neck'):
            stages = self._rewire_neck(stages)
        elif self.segments:
            stages = self._rewire_segmentation_heads(stages)
        else:
            self._rewire_detection_heads(stages)
        self._replace_backbone(arch, stages, checkpoint, backbone_kwargs)
        self._drop_old_weights()
        if checkpoint is not None:
            self._match_preprocessing()
        if self.segments:
            self._round_test_sizes()
        self._import_plugin()
        if not keep_optimizer:
            self._set_optimizer()

    def get(self, path: tuple) -> Any:
        node = self.cfg
        for key in path:
            node = node[key]
        return node

    def find(self, path: tuple) -> Any:
        node = self.cfg
        for key in path:
            node = node.get(key) or {}
        return node

    def set(self, path: tuple, value: Any, reason: str) -> None:
        parent, key = self.get(path[:-1]), path[-1]
        is_list = isinstance(parent, (list, tuple))
        old = parent[key] if is_list else parent.get(key)
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)  # some modules insist on it
        if old == value and (old is not None or is_list or key in parent):
            return
        self.changes.append(Change('.'.join(map(str, path)), copy.deepcopy(old), value, reason))
        parent[key] = value

    def dims(self, stages: list[int]) -> list[int]:
        return [self.arch.embed_dims[stage] for stage in stages]

    # What is read --------------------------------------------------------------------------

    def _match_stages(self) -> list[int]:
        """The stage of PoolFormer for each map that the old backbone returns."""
        strides = _strides_of(self.model['backbone'], self.scope, self.cfg)
        if not self.segments:
            unmatched = [stride for stride in strides if stride not in STRIDES]
            if unmatched or sorted(set(strides)) != list(strides):
                raise SwapError(
                    f'its backbone has maps of stride {_join(strides)}, for which its heads are '
                    f'laid out; PoolFormer has {_join(STRIDES)}'
                )
            return [STRIDES.index(stride) for stride in strides]
        # Segmentation heads resize what they read. Where dilation keeps a stride, or a map is
        # finer than any of PoolFormer's, depth decides: the last map comes from the last stage.
        if len(strides) > NUM_STAGES or list(strides) != sorted(strides):
            raise SwapError(
                f'its backbone has maps of stride {_join(strides)}, which is no feature pyramid'
            )
        stages: list[int] = []
        for stride in strides[:-1]:
            stage = sum(own < stride for own in STRIDES)
            stages.append(max([stage, *(before + 1 for before in stages[-1:])]))
        stages.append(NUM_STAGES - 1)
        for k in range(len(stages) - 2, -1, -1):
            stages[k] = min(stages[k], stages[k + 1] - 1)
        return stages

    def _rewire_neck(self, stages: list[int]) -> list[int]:
        path = (*self.at, 'neck')
        if isinstance(self.model['neck'], (list, tuple)):
            path = (*path, 0)
        neck = self.get(path)
        kind = type_of(neck)
        if 'in_channels' not in neck:
            raise SwapError(f'its neck {kind} does not say in in_channels what it reads')
        if is_integer(neck['in_channels']):
            self.set((*path, 'in_channels'), self.dims(stages)[-1], 'the stage it reads')
            return stages[-1:]
        count = len(neck['in_channels'])
        if count > len(stages):
            raise SwapError(
                f'its neck {kind} reads {count} maps and its backbone returns {len(stages)}'
            )
        # Maps that the neck passes by would leave a norm without gradient, which DDP refuses.
        stages = stages[-count:]
        start = neck.get('start_level', 0)
        if start and kind in INDEXED_NECKS:
            reason = f'{kind} asks for maps that it does not use'
            self.set(('find_unused_parameters',), True, reason)
            start = 0
        end = neck.get('end_level', -1)
        stages = stages[start:]
        if start:
            self.set((*path, 'start_level'), 0, 'the backbone returns only what is read')
            if end > 0:
                self.set((*path, 'end_level'), end - start, 'counted from the new start_level')
        self.set((*path, 'in_channels'), self.dims(stages), 'the stages it reads')
        if kind == 'SSDNeck':
            self._replace_first((*path, 'out_channels'), stages)
            self._replace_first((*self.at, 'bbox_head', 'in_channels'), stages)
        if kind == 'JPU':  # passes on all maps but the last
            for head_path, head in _segmentation_heads(self.model, self.at):
                index = head.get('in_index', -1)
                if isinstance(index, int) and 0 <= index < len(stages) - 1:
                    channels = self.dims(stages)[index]
                    self.set((*head_path, 'in_channels'), channels, 'the stage it reads')
        return stages

    def _replace_first(self, path: tuple, stages: list[int]) -> None:
        channels = self.dims(stages) + list(self.get(path))[len(stages) :]
        self.set(path, channels, 'the neck passes the stages on')

    def _rewire_segmentation_heads(self, stages: list[int]) -> list[int]:
        count = len(stages)
        heads = [
            (path, head, _levels_read(head, count))
            for path, head in _segmentation_heads(self.model, self.at)
            if 'in_channels' in head
        ]
        for k in range(1, len(heads)):
            # It weighs its own map with the head's before it: in dilated networks of one size.
            if type_of(heads[k][1]) == 'OCRHead' and len(heads[k][2]) == 1:
                heads[k - 1] = (*heads[k - 1][:2], heads[k][2])
        read = {level for *_, levels in heads for level in levels}
        read |= {0 for _, head, _ in heads if 'c1_in_channels' in head}
        if not read:
            raise SwapError('no head says in in_channels what it reads')
        if not read <= set(range(count)):
            raise SwapError(f'its heads read maps {_join(sorted(read))} of {count}')
        kept = sorted(read)
        for path, head, levels in heads:
            channels = [self.dims(stages)[level] for level in levels]
            listed = isinstance(head['in_channels'], (list, tuple))
            self.set(
                (*path, 'in_channels'), channels if listed else channels[0], 'the stages it reads'
            )
            if 'c1_in_channels' in head:
                self.set((*path, 'c1_in_channels'), self.dims(stages)[0], 'the first stage')
            index = [kept.index(level) for level in levels]
            if not listed:
                index = index[0]
            if 'in_index' in head or (not listed and index != len(kept) - 1):
                self.set((*path, 'in_index'), index, 'counted over the maps that are read')
        return [stages[level] for level in kept]

    def _rewire_detection_heads(self, stages: list[int]) -> None:
        """Without a neck: heads of several maps are rewired, those of one map get a projection.

        A head that reads one map (C4, DC5) takes its width from there through several
        modules, some of them fixed to ResNet's last stage.
        """
        read = {key: node for key, node in self.model.items() if _has(node, 'in_channels')}
        widths = {node['in_channels'] for node in read.values() if is_integer(node['in_channels'])}
        if not read or len(widths) > 1 or (widths and len(stages) > 1):
            raise SwapError(
                'it has no neck, and its heads do not say in in_channels what they read'
            )
        if widths:
            neck = dict(
                type='ChannelMapper',
                in_channels=self.dims(stages),
                out_channels=widths.pop(),
                kernel_size=1,
                act_cfg=None,
                num_outs=1,
            )
            self.set((*self.at, 'neck'), neck, 'a 1×1 convolution to the width the heads read')
            return
        for key, node in read.items():
            if len(node['in_channels']) != len(stages):
                raise SwapError(
                    f'its {key} reads {len(node["in_channels"])} maps '
                    f'and its backbone returns {len(stages)}'
                )
            path = (*self.at, key, 'in_channels')
            self.set(path, self.dims(stages), 'the stages it reads')

    # What is replaced ----------------------------------------------------------------------

    def _replace_backbone(self, arch, stages, checkpoint, backbone_kwargs) -> None:
        old = self.model['backbone']
        by_name = isinstance(arch, str)
        sized = _sized(self.mixers)
        if sized and 'input_size' not in backbone_kwargs:
            raise SwapError(
                f'{_join(sized)} mixes images of one size only: resize or pad all images to it and '
                'call swap_backbone(cfg, …, input_size=(height, width), checkpoint=None), or take '
                'another arch'
            )
        pools = 'token_mixers' not in backbone_kwargs and set(self.mixers) == {'pooling'}
        kind = 'PoolFormer' if pools and (not by_name or arch in ARCHS) else 'MetaFormer'
        new: dict = dict(type=kind, arch=arch if by_name else _as_dict(arch))
        if stages != list(range(NUM_STAGES)):
            new['out_indices'] = tuple(stages)
        for key in ('in_channels', 'with_cp'):
            if old.get(key) not in (None, False, 3):
                new[key] = old[key]
        new.update(backbone_kwargs)
        if checkpoint is not None:
            if checkpoint == 'official':
                checkpoint = official_weights(arch)
            new['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
        strides = _join(STRIDES[stage] for stage in stages)
        self.set((*self.at, 'backbone'), new, f'maps of stride {strides}')

    def _drop_old_weights(self) -> None:
        for depth in range(1, len(self.at) + 1):
            node = self.get(self.at[:depth])
            for key in ('pretrained', 'init_cfg'):
                value = node.get(key)
                if value and (key == 'pretrained' or type_of(value) == 'Pretrained'):
                    path = (*self.at[:depth], key)
                    self.set(path, None, 'weights of the old backbone')
        if self.cfg.get('load_from'):
            self.set(('load_from',), None, 'weights of the old model')

    def _match_preprocessing(self) -> None:
        roots = (('model', 'data_preprocessor'), ('data_preprocessor',))
        for root in dict.fromkeys((*roots, (*self.at, 'data_preprocessor'))):
            for path, node in walk(self.find(root), root):
                if len(node.get('mean') or ()) != 3:
                    continue
                for key, value in PREPROCESSING.items():
                    if key in ('mean', 'std') or node.get(key) or value:
                        self.set((*path, key), value, "the new weights' images: RGB, ImageNet's")

    def _round_test_sizes(self) -> None:
        """The published protocol: without it a Semantic FPN loses about one point of mIoU."""
        if (self.model.get('test_cfg') or {}).get('mode') == 'slide':
            return
        for split in ('val', 'test'):
            dataset = self.find((f'{split}_dataloader', 'dataset'))
            if 'pipeline' in dataset:
                path = (f'{split}_dataloader', 'dataset', 'pipeline')
                self._round_after_resize(path, dict(ROUNDING))
        for k, transform in enumerate(self.cfg.get('tta_pipeline') or ()):
            if type_of(transform) == 'TestTimeAug':
                self._round_after_resize(('tta_pipeline', k, 'transforms'), [dict(ROUNDING)])

    def _round_after_resize(self, path: tuple, rounding: dict | list[dict]) -> None:
        pipeline = self.get(path)
        kinds = [type_of(step[0] if isinstance(step, list) else step) for step in pipeline]
        if 'Resize' in kinds and 'ResizeToMultiple' not in kinds:
            after = kinds.index('Resize') + 1
            new = [*pipeline[:after], rounding, *pipeline[after:]]
            self.set(path, new, 'sides in multiples of 32, as PoolFormer was tested')

    def _import_plugin(self) -> None:
        old = self.cfg.get('custom_imports') or {}
        imports = old.get('imports') or []
        imports = [imports] if isinstance(imports, str) else list(imports)
        scopes = {name.split('.')[0] for name in _type_names(self.cfg)}
        if 'mmpretrain' not in scopes:  # it served the old backbone
            imports = [name for name in imports if name.split('.')[0] != 'mmpretrain']
        if 'mmpoolformer' not in imports:
            imports.append('mmpoolformer')
        new = dict(imports=imports, allow_failed_imports=old.get('allow_failed_imports', False))
        self.set(('custom_imports',), new, 'registers PoolFormer')

    # How it is trained ---------------------------------------------------------------------

    def _set_optimizer(self) -> None:
        wrapper = self.cfg.get('optim_wrapper') or {}
        old = wrapper.get('optimizer')
        if not old:
            return
        queries = any(_has(node, 'num_queries', 'num_proposals') for _, node in walk(self.model))
        if queries and type_of(old) == 'AdamW':
            if wrapper.get('constructor') in BACKBONE_CONSTRUCTORS:
                reason = 'counts the blocks of the old backbone'
                for key in ('constructor', 'paramwise_cfg'):
                    self.set(('optim_wrapper', key), None, reason)
            return
        if self.segments:
            lr, batch_size, model = 2e-4, 32, 'Semantic FPN'
        elif 'rpn_head' in self.model or 'roi_head' in self.model:
            lr, batch_size, model = 2e-4, 16, 'Mask R-CNN'
        else:
            lr, batch_size, model = 1e-4, 16, 'RetinaNet'
        reason = f"the paper's recipe for {model}"
        optimizer = dict(type='AdamW', lr=lr, weight_decay=1e-4)
        self.set(('optim_wrapper', 'optimizer'), optimizer, reason)
        for key in ('clip_grad', 'paramwise_cfg', 'constructor'):
            if wrapper.get(key) is not None:
                self.set(('optim_wrapper', key), None, reason)
        scaling = dict(self.cfg.get('auto_scale_lr') or dict(enable=False))
        scaling['base_batch_size'] = batch_size
        self.set(('auto_scale_lr',), scaling, f'{lr} is for batches of {batch_size}')
        schedulers = self.cfg.get('param_scheduler') or []
        for k, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
            if scheduler.get('eta_min') and old.get('lr'):
                eta_min = float(f'{scheduler["eta_min"] * lr / old["lr"]:.3g}')
                path = ('param_scheduler', k, 'eta_min')
                self.set(path, eta_min, 'scaled with the learning rate')


# The old backbone ------------------------------------------------------------------------


def _strides_of(backbone: dict, scope: str, cfg: Config) -> tuple[int, ...]:
    """The strides of the maps that a backbone returns, found by running it."""
    kind = type_of(backbone)
    _import_models(scope, cfg)
    if not _is_registered(backbone['type'], scope):
        strides = _documented_strides(kind, backbone)
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
            f'its backbone {kind} does not run on a {PROBE_SIZE}×{PROBE_SIZE} image: '
            f'{type(error).__name__}: {_first_line(error)}'
        ) from error


PROBE_SIZE = 128


@cache
def _measure_strides(pickled: bytes, scope: str) -> tuple[int, ...]:
    backbone = pickle.loads(pickled)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:  # no memory, no arithmetic; some modules cannot
            return _run_probe(backbone, scope, 'meta')
        except Exception:
            return _run_probe(backbone, scope, 'cpu')


def _run_probe(backbone: dict, scope: str, device: str) -> tuple[int, ...]:
    models = import_module(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        module = models.build(copy.deepcopy(backbone))
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


def _import_models(scope: str, cfg: Config) -> None:
    import_module(f'{scope}.models')
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    for name in [imports] if isinstance(imports, str) else imports:
        try:
            import_module(name)
        except ImportError:
            continue  # the type is reported, if it is then missing


def _is_registered(kind: Any, scope: str) -> bool:
    if not isinstance(kind, str):
        return True
    prefix = kind.split('.')[0] if '.' in kind else scope
    if find_spec(prefix) is None:
        return False
    with DefaultScope.overwrite_default_scope(scope):
        return import_module(f'{scope}.registry').MODELS.get(kind) is not None


# The config ------------------------------------------------------------------------------


def _scope_of(cfg: Config) -> str:
    scope = cfg.get('default_scope')
    if not cfg.get('model'):
        raise SwapError('it has no model: it is a fragment for other configs')
    if scope not in TOOLBOXES:
        raise SwapError(f'default_scope={scope!r} is none of {_join(TOOLBOXES)}')
    if find_spec(scope) is None:
        raise SwapError(f'it needs {scope}, which is not installed')
    return scope


def _find_backbone(cfg: Config) -> tuple:
    """Path of the model that has the backbone: trackers and semi-supervision wrap it."""
    path: tuple = ('model',)
    node = cfg['model']
    while True:
        for key in (None, 'neck', 'decode_head', 'backbone'):
            part = node.get(key) if key else node
            part = part[0] if isinstance(part, list) and part else part
            if isinstance(part, dict) and type_of(part) in REFUSED:
                reason, nearest = REFUSED[type_of(part)]
                raise SwapError(f'{type_of(part)}: {reason}', nearest)
        if 'backbone' in node:
            return path
        if not _has(node, 'detector'):
            raise SwapError(f'its model {type_of(node)} has no backbone')
        path, node = (*path, 'detector'), node['detector']


def _segmentation_heads(model: dict, at: tuple) -> Iterator[tuple[tuple, dict]]:
    """Decode and auxiliary heads, and heads inside of them, which have an in_index."""
    for key in ('decode_head', 'auxiliary_head'):
        heads = model.get(key)
        listed = isinstance(heads, (list, tuple))
        for k, head in enumerate(heads if listed else [heads] if heads else []):
            root = (*at, key, k) if listed else (*at, key)
            yield root, head
            for path, node in walk(head):
                if path and 'in_index' in node:
                    yield (*root, *path), node


def _levels_read(head: dict, count: int) -> list[int]:
    listed = isinstance(head['in_channels'], (list, tuple))
    index = head.get('in_index', list(range(count)) if listed else -1)
    index = list(index) if isinstance(index, (list, tuple)) else [index]
    if type_of(head) == 'EncHead' and not head.get('add_lateral'):
        index = index[-1:]  # it is given more, and uses the last
    return [level % count if level < 0 else level for level in index]


def _type_names(cfg: Config) -> set[str]:
    return {node['type'] for _, node in walk(cfg.to_dict()) if isinstance(node.get('type'), str)}


def _has(node: Any, *keys: str) -> bool:
    return isinstance(node, dict) and any(key in node for key in keys)


def _as_dict(arch: dict | Arch) -> dict:
    return dict(arch) if isinstance(arch, dict) else arch._asdict()


def _mixers_of(arch: Arch, token_mixers) -> list[str]:
    """The names of the token mixers, one per stage."""
    mixers = one_per_stage(arch.token_mixers if token_mixers is None else token_mixers)
    cfgs = [mixer if isinstance(mixer, dict) else dict(type=mixer) for mixer in mixers]
    return [type_of(cfg) for cfg in cfgs]


def _sized(mixers: list[str]) -> list[str]:
    return sorted({name for name in mixers if is_of_one_size(name)})


def _check_official_mixers(arch: str, mixers: list[str], input_size) -> None:
    own = _mixers_of(resolve_arch(arch), None)
    if mixers != own:
        raise ValueError(
            f"checkpoint='official': the weights of {arch} are for {_join(own)}, not for "
            f'{_join(mixers)}: give checkpoint=None or a path'
        )
    sides = input_size if isinstance(input_size, (list, tuple)) else [input_size]
    if _sized(mixers) and not {*sides} <= {None, OFFICIAL_SIZE}:
        raise ValueError(
            f"checkpoint='official': the weights of {arch} mix images of "
            f'{OFFICIAL_SIZE}×{OFFICIAL_SIZE}, not of input_size={input_size!r}: give '
            'checkpoint=None or a path'
        )


def _check_arguments(arch, checkpoint, backbone_kwargs) -> None:
    if checkpoint == 'official' and not isinstance(arch, str):
        raise ValueError(
            f"checkpoint='official' exists for {_join(known_names())}, not for an arch of your "
            'own: give checkpoint=None or a path'
        )
    chosen = {'arch': 'arch', 'init_cfg': 'checkpoint', 'out_indices': None, 'fork_feat': None}
    allowed = set(inspect.signature(MetaFormer).parameters) - set(chosen)
    for name in backbone_kwargs:
        if name in chosen:
            remedy = f'give {chosen[name]}' if chosen[name] else 'leave it out'
            raise TypeError(f'{name} follows from the config that the backbone is put in: {remedy}')
        if name not in allowed:
            raise TypeError(f'MetaFormer has no argument {name!r}: it has {_join(sorted(allowed))}')


def _join(values) -> str:
    return ', '.join(map(str, values))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')


def _short(value: Any, length: int = 100) -> str:
    if _has(value, 'type'):
        arguments = ', '.join(
            f'{k}={v!r}' for k, v in value.items() if k not in ('type', 'init_cfg')
        )
        text = f'{type_of(value)}({arguments})'
    else:
        text = repr(value)
    return text if len(text) <= length else f'{text[: length - 1]}…'
