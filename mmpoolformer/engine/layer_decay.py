"""Learning rates that shrink from the heads down to the stem, layer by layer."""

from __future__ import annotations

import math

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..archs import is_number
from ..models import MetaFormer
from ..utils.errors import LaunchError, join

TYPES = ('layer_wise', 'stage_wise')
KEYS = ('decay_rate', 'decay_type')
BLOCKS = 3  # of the third stage to a layer


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MetaFormerLayerDecay(DefaultOptimWrapperConstructor):
    """Multiply the learning rate by ``decay_rate`` once per layer below the heads.

    The layers are counted as mmdet and mmseg count those of ConvNeXt: with ``'layer_wise'`` the
    stem is layer 0, the first two stages are a layer each, three blocks of the third stage are
    one, the fourth stage is the last. A downsampling belongs to the stage that it leads to. With
    ``'stage_wise'`` the stem and every downsampling are layer 0 and the stages layers 1 to 4.
    Output norms, necks and heads have the whole rate.

    Norms, biases, LayerScale, ResScale, the numbers of StarReLU and position embeddings have no
    weight decay, in the whole model.

    Args:
        optim_wrapper_cfg: The wrapper and the optimizer, as mmengine takes them.
        paramwise_cfg: ``decay_rate``, above 0 and at most 1, and ``decay_type``, by default
            ``'layer_wise'``.

    Raises:
        LaunchError: ``paramwise_cfg`` has something else, the optimizer has no ``lr``, or the
            model has no MetaFormer.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        given = dict(paramwise_cfg or {})
        unknown = sorted(set(given) - set(KEYS))
        if unknown:
            raise LaunchError(
                f'paramwise_cfg has {join(unknown)}: {type(self).__name__} takes {join(KEYS)}. The '
                'layers are counted, so leave num_layers out'
            )
        rate, kind = given.get('decay_rate'), given.get('decay_type', TYPES[0])
        if not is_number(rate) or not 0 < rate <= 1:
            raise LaunchError(f'decay_rate={rate!r}: give a number above 0 and at most 1')
        if kind not in TYPES:
            raise LaunchError(f'decay_type={kind!r}: give one of {join(TYPES)}')
        super().__init__(optim_wrapper_cfg, given)
        if self.base_lr is None:
            raise LaunchError(
                f'optim_wrapper.optimizer has no lr, which {type(self).__name__} multiplies: give '
                'one, such as lr=1e-4'
            )

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Add a group for each layer, with weight decay and without; see mmengine.

        Args:
            params: Where the groups go.
            module: The whole model.
            kwargs: Nothing that is used here.
        """
        rate, kind = self.paramwise_cfg['decay_rate'], self.paramwise_cfg.get('decay_type')
        backbones = [part for part in module.modules() if isinstance(part, MetaFormer)]
        if not backbones:
            raise LaunchError(
                f'{type(module).__name__} has no PoolFormer or MetaFormer: {type(self).__name__} '
                'counts their layers. Leave constructor out of optim_wrapper'
            )
        below: dict[int, int] = {}
        for backbone in backbones:
            below.update(layers_below_heads(backbone, kind or TYPES[0]))
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            steps = below.get(id(parameter), 0)
            decays = parameter.ndim > 1 and not name.endswith('.bias') and 'pos_embed' not in name
            group = groups.setdefault(
                (steps, decays), dict(params=[], lr=self.base_lr * rate**steps)
            )
            if not decays:
                group['weight_decay'] = 0.0
            elif self.base_wd is not None:  # else the optimizer's own
                group['weight_decay'] = self.base_wd
            group['params'].append(parameter)
        params.extend(groups.values())


def layers_below_heads(backbone: MetaFormer, decay_type: str) -> dict[int, int]:
    """How many layers lie between each parameter and the heads.

    Args:
        backbone: The backbone.
        decay_type: One of :data:`TYPES`.

    Returns:
        The number for the ``id`` of each parameter of stem and stages; output norms are not in
        it, as nothing lies between.
    """
    last = 3 + math.ceil(backbone.arch.layers[2] / BLOCKS)
    by_stage = decay_type == 'stage_wise'
    below = {}

    def put(parameters, layer: int) -> None:
        below.update({id(parameter): last + 1 - layer for parameter in parameters})

    for stage, (embed, blocks) in enumerate(backbone.stages):
        first = (1, 2, 3, last)[stage]
        embed_layer = 0 if by_stage or stage == 0 else first
        put(embed.parameters(), embed_layer)
        pos_embed = backbone.pos_embed(stage)
        put([] if pos_embed is None else [pos_embed], embed_layer)
        for k, block in enumerate(blocks):
            layer = first + k // BLOCKS if stage == 2 else first
            put(block.parameters(), stage + 1 if by_stage else layer)
    return below
