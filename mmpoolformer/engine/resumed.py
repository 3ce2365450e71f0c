"""What a checkpoint may say to the run that resumes it.

mmengine and PyTorch believe what they resume from: shapes that a fused optimizer reads beyond
its memory, positions in a generator, attributes of schedulers, lists of files to remove.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ..archs import is_integer, is_number
from ..utils.config_tree import type_of, walk
from ..utils.errors import LaunchError, join, short
from .dataset_meta import check_class_order
from .resumed_schedule import FROM_WEIGHTS, LARGEST_COUNT, check_progress, check_schedulers

LARGEST_SEED = 2**32
MOST_KEPT = 10_000  # checkpoints
MOST_NAMES = 5000  # in each part of the hub: mmengine compares each with all
MERSENNE = 624  # numbers in the state of NumPy's and PyTorch's generators
# How an optimizer computes, which the config of the resumed run decides.
IMPLEMENTATION = (
    'fused', 'foreach', 'capturable', 'differentiable', 'maximize', 'amsgrad', 'nesterov',
    'decoupled_weight_decay',
)  # fmt: skip
# Options by which the kind of an optimizer shows, in PyTorch's.
KINDS = ('betas', 'eps', 'momentum', 'dampening', 'alpha', 'rho', 'lr_decay', 'lambd', 'etas')
# States that have the shape of their parameter, in PyTorch's optimizers: some read them unchecked.
SHAPED = frozenset((
    'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer', 'sum', 'square_avg', 'grad_avg',
    'acc_delta', 'exp_inf', 'prev', 'step_size', 'ax',
))  # fmt: skip
# Those of both Adafactors, whose outer product has the shape of the parameter.
FACTORS = {
    'exp_avg_sq_row': lambda shape: shape[:-1],
    'exp_avg_sq_col': lambda shape: shape[:-2] + shape[-1:],
    'row_var': lambda shape: (*shape[:-1], 1),
    'col_var': lambda shape: (*shape[:-2], 1, shape[-1]),
}
# Parts of mmdet that remember sizes, images or overlaps in attributes of their own.
FORGETFUL = ('BatchSyncRandomResize', 'CachedMosaic', 'CachedMixUp', 'DynamicRoIHead')
ADAM = ('step', 'exp_avg', 'exp_avg_sq')
NEEDED = {
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.Adagrad: ('step', 'sum'),
    torch.optim.RMSprop: ('step', 'square_avg'),
}


def check_resumed(checkpoint: Any, runner: Runner) -> None:
    """Refuse a checkpoint that would harm the run, and take out what it must not decide.

    Args:
        checkpoint: What was read; its optimizer and schedulers are cleaned in place.
        runner: The run that resumes, with its optimizer and schedulers built.

    Raises:
        LaunchError: Names the entry that is wrong.
    """
    for key in list(checkpoint):
        checkpoint[key] = _own_containers(checkpoint[key])
    for key in ('meta', 'state_dict', 'message_hub'):
        if not isinstance(checkpoint.get(key), dict):
            raise LaunchError(
                f'it has no {key}, so it is not the checkpoint of a training. {FROM_WEIGHTS}'
            )
    check_meta(checkpoint['meta'])
    check_progress(checkpoint, runner)
    dataset = runner.train_loop.dataloader.dataset
    warning = check_class_order(checkpoint, runner.cfg, dataset.metainfo.get('classes'))
    if warning:
        runner.logger.warning(warning)
    _check_hub(checkpoint['message_hub'])
    for key in ('state_dict', 'ema_state_dict'):
        if not all(isinstance(name, str) for name in checkpoint.get(key) or {}):
            raise LaunchError(f'its {key} has keys that are no names')
    if 'ema_state_dict' in checkpoint and not any(isinstance(h, EMAHook) for h in runner.hooks):
        raise LaunchError(
            'its weights are averaged by EMAHook, which the config has not: training would go on '
            'from the average. Put the hook into custom_hooks again, with the arguments that it '
            f'had. {FROM_WEIGHTS}'
        )
    if checkpoint.get('random_state') is not None:
        check_random_state(checkpoint['random_state'])
    states = checkpoint.get('random_states') or []
    if not isinstance(states, list):
        raise LaunchError('its random_states are no list with one of each process')
    for state in states:
        check_random_state(state)
    if isinstance(runner, Runner):  # a FlexibleRunner's strategy has other names for them
        needed = ['optimizer'] + ['param_schedulers'] * bool(runner.param_schedulers)
        for key in needed:
            if key not in checkpoint:
                raise LaunchError(f'it has no {key}, which would start anew. {FROM_WEIGHTS}')
    if 'optimizer' in checkpoint:
        _check_wrapper(checkpoint['optimizer'], runner.optim_wrapper)
    if runner.param_schedulers and 'param_schedulers' in checkpoint:
        changed = check_schedulers(checkpoint['param_schedulers'], runner)
        if changed and not isinstance(runner, Runner):
            raise LaunchError(f'the config has another schedule: {changed[0].said}')
        runner.changed_schedule = changed


def check_same_model(weights: dict, model: nn.Module) -> None:
    """Refuse weights of another model, of which mmengine would load what fits.

    Args:
        weights: The state dict, by names of the model with or without ``module.``.
        model: The model of the run that resumes.

    Raises:
        LaunchError: Names the first tensor that is missing or of another shape.
    """
    found = {key.removeprefix('module.'): value for key, value in weights.items()}
    for name, own in model.state_dict().items():
        name = name.removeprefix('module.')
        shape = getattr(found.get(name), 'shape', None)
        if name.endswith('num_batches_tracked') and shape is None:
            continue
        if shape != own.shape:
            has = f'no {name}' if shape is None else f'{name} of shape {tuple(shape)}'
            raise LaunchError(
                f'it has {has}, where the model of the config has {tuple(own.shape)}: it is of '
                f'another model. {FROM_WEIGHTS}'
            )


def _own_containers(node: Any) -> Any:
    """A copy that shares no dictionary: hooks write into one after another was checked."""
    if isinstance(node, dict):
        copied = copy.copy(node)  # of its class, with its attributes
        for key, value in node.items():
            copied[key] = _own_containers(value)
        return copied
    if type(node) in (list, tuple):
        return type(node)(map(_own_containers, node))
    return node


def check_meta(meta: Any) -> None:
    """Refuse counts and a seed that are none.

    Raises:
        LaunchError: Names the entry that is wrong.
    """
    if not isinstance(meta, dict):
        raise LaunchError(f'its meta is {short(meta)}, not a dictionary')
    if _has_tensors(meta):  # a view would be copied with all that it is a view of
        raise LaunchError('its meta has tensors in it')
    for key in ('epoch', 'iter'):
        value = meta.get(key)
        if not is_integer(value) or not 0 <= value < LARGEST_COUNT:
            raise LaunchError(f'its meta.{key} is {short(value)}, which no run reaches')
    seed = meta.get('seed')
    if seed is not None and not (is_integer(seed) and 0 <= seed < LARGEST_SEED):
        raise LaunchError(f'its meta.seed is {short(seed)}, which is no seed')


def _has_tensors(node: Any) -> bool:
    if isinstance(node, (dict, list, tuple, set)):
        return any(map(_has_tensors, node.values() if isinstance(node, dict) else node))
    return isinstance(node, Tensor)


def _check_hub(hub: dict) -> None:
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub.get(key), dict):
            raise LaunchError(f'its message_hub has no {key}')
        if not all(isinstance(name, str) for name in hub[key]):
            raise LaunchError(f'its message_hub.{key} has keys that are no names')
        if len(hub[key]) > MOST_NAMES:
            raise LaunchError(f'its message_hub has {len(hub[key])} {key}')
    for name, log in list(hub['log_scalars'].items()):
        if isinstance(log, HistoryBuffer) and not len(log.data[0]):  # nothing to smooth
            del hub['log_scalars'][name]
    info = hub['runtime_info']
    kept = info.get('keep_ckpt_ids', [])
    if not isinstance(kept, list) or len(kept) > MOST_KEPT:
        raise LaunchError('its keep_ckpt_ids is no list of checkpoints')
    info['keep_ckpt_ids'] = [step for step in kept if is_integer(step)]
    for name, value in info.items():
        if name.startswith('best_score') and not isinstance(value, (int, float, np.number)):
            raise LaunchError(f'its {name} is {short(value)}, not a number')


def _check_wrapper(state: Any, wrapper: OptimWrapper | OptimWrapperDict) -> None:
    if isinstance(wrapper, OptimWrapperDict):
        if not isinstance(state, dict) or set(state) != set(wrapper.keys()):
            raise LaunchError(f'its optimizer is not one of each of {join(wrapper.keys())}')
        for name, one in wrapper.items():
            _check_wrapper(state[name], one)
    elif isinstance(wrapper.optimizer, torch.optim.Optimizer):
        _check_optimizer(state, wrapper.optimizer)
        base = getattr(wrapper, 'base_param_settings', None)
        found = state.get('base_param_settings')
        if isinstance(found, dict) and isinstance(base, dict):
            _check_options(found, base)
        else:
            state.pop('base_param_settings', None)


def _check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """The implementation is the run's own, and states have the shapes that it will read."""
    groups = state.get('param_groups') if isinstance(state, dict) else None
    states = state.get('state') if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise LaunchError('its optimizer has no state and param_groups')
    if len(groups) != len(optimizer.param_groups):
        raise LaunchError(
            f'its optimizer has {len(groups)} groups of parameters, '
            f"the config's has {len(optimizer.param_groups)}"
        )
    kept: list[str] = []
    places: list[tuple[Tensor, dict]] = []  # by the number that the states are named with
    for group, own in zip(groups, optimizer.param_groups):
        if not isinstance(group, dict) or not isinstance(group.get('params'), list):
            raise LaunchError('its optimizer has a group without parameters')
        if len(group['params']) != len(own['params']):
            raise LaunchError(
                f'its optimizer has a group of {len(group["params"])} parameters, '
                f"the config's has {len(own['params'])}"
            )
        foreign = [key for key in KINDS if key in group and key not in own]
        if foreign:
            raise LaunchError(
                f'its optimizer has {join(foreign)}, which {type(_inner(optimizer)).__name__} of '
                f'the config has not: it is of another kind. {FROM_WEIGHTS}'
            )
        group.update({key: own[key] for key in IMPLEMENTATION if key in own})
        kept += _check_options(group, own)
        numbers = range(len(places), len(places) + len(own['params']))
        if not all(is_integer(a) and a == b for a, b in zip(group['params'], numbers)):
            raise LaunchError('its optimizer does not count its parameters in their order')
        places += [(parameter, own) for parameter in own['params']]
    if kept:
        differences = '; '.join(list(dict.fromkeys(kept))[:8])
        message = (
            f"its optimizer has {differences}: it goes on with the checkpoint's. {FROM_WEIGHTS}"
        )
        print_log(message, logger='current', level=logging.WARNING)
    for number, entry in states.items():
        if (
            not isinstance(entry, dict)
            or not is_integer(number)
            or number not in range(len(places))
        ):
            raise LaunchError('its optimizer has a state of no parameter')
        parameter, own = places[number]
        _check_state(entry, parameter, _is_of_torch(optimizer))
        for name in _needed(optimizer, own):
            if not isinstance(entry.get(name), (Tensor, int, float)):
                raise LaunchError(f'its optimizer has a state without {name}')


def _is_of_torch(optimizer: torch.optim.Optimizer) -> bool:
    return any(
        kind.__module__.startswith('torch.optim.') and kind is not torch.optim.Optimizer
        for kind in type(_inner(optimizer)).__mro__
    )


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The one that ZeroRedundancyOptimizer steps with."""
    return getattr(optimizer, 'optim', optimizer)


def _needed(optimizer: torch.optim.Optimizer, group: dict) -> tuple[str, ...]:
    names = next(
        (names for kind, names in NEEDED.items() if isinstance(_inner(optimizer), kind)), ()
    )
    return (*names, 'max_exp_avg_sq') if names and group.get('amsgrad') else names


def _check_options(group: dict, own: dict) -> list[str]:
    """Options keep the kind that they have in the config; what is missing is the config's.

    Returns:
        What differs in numbers that nothing changes in a run.
    """
    kept = []
    for key in own:
        group.setdefault(key, own[key])
    for key, value in group.items():
        if key == 'params' or key not in own:
            continue
        if key.startswith('initial_'):
            _check_initial(key, value, own[key])
        if isinstance(own[key], bool) or own[key] is None:
            group[key] = own[key]
        elif isinstance(own[key], (int, float)):
            group[key] = _number(value, key)
            is_scheduled = key.startswith('initial_') or f'initial_{key}' in own
            if not is_scheduled and not math.isclose(group[key], own[key], rel_tol=1e-6):
                kept.append(f'{key}={group[key]:g}, and the config {own[key]:g}')
        elif isinstance(own[key], (list, tuple)):
            values = value if isinstance(value, (list, tuple)) else ()
            if len(values) != len(own[key]):
                raise LaunchError(f'its optimizer has {key}={short(value)}, not {own[key]}')
            group[key] = tuple(
                part if part is None else _number(value, key)
                for value, part in zip(values, own[key])
            )
            is_scheduled = 'initial_momentum' in own and key == 'betas'
            if not is_scheduled and group[key] != tuple(map(float, own[key])):
                kept.append(f'{key}={group[key]}, and the config {tuple(own[key])}')
            if key == 'betas' and not all(0 <= part < 1 for part in group[key]):
                raise LaunchError(f'its optimizer has {key}={group[key]}, which are no decays')
    return kept


def _check_initial(key: str, value: Any, own: Any) -> None:
    """What schedulers count from: mmengine goes on from the file's, whatever the config says."""
    if is_number(value) and is_number(own) and not math.isclose(value, own, rel_tol=1e-6):
        name = key.removeprefix('initial_')
        raise LaunchError(
            f"its optimizer began with {name}={value:g}, the config's with {own:g}, which would be "
            f'passed over. Give the config the {name} that it had (with --auto-scale-lr, also the '
            f'batch size and the number of processes). {FROM_WEIGHTS}'
        )


def _number(value: Any, key: str) -> float:
    if not is_number(value) or abs(value) > LARGEST_COUNT or math.isnan(value):
        raise LaunchError(f'its optimizer has {key}={short(value)}, not a number')
    return float(value)


def _check_state(entry: dict, parameter: Tensor, of_torch: bool) -> None:
    for name, value in entry.items():
        if not _is_flat(value):
            raise LaunchError(f'its optimizer has {name} of type {type(value).__name__}')
        if name == 'step':
            is_scalar = value.numel() == 1 if isinstance(value, Tensor) else is_number(value)
            if not is_scalar or not 0 <= float(value) < LARGEST_COUNT:
                raise LaunchError('its optimizer has a step that no run reaches')
            if isinstance(value, Tensor):
                entry[name] = value.reshape(()).float().clone()
        elif value is not None and ((of_torch and name in SHAPED) or name in FACTORS):
            if not isinstance(value, Tensor):
                raise LaunchError(f'its optimizer has {name}={short(value)}')
            shape = FACTORS[name](parameter.shape) if name in FACTORS else parameter.shape
            if value.shape != shape or not value.is_floating_point():
                raise LaunchError(
                    f'its optimizer has {name} of shape {tuple(value.shape)} and {value.dtype} for '
                    f'a parameter of shape {tuple(parameter.shape)}'
                )
            entry[name] = value.clone()  # numbers of its own, one behind the other


def _is_flat(value: Any) -> bool:
    return value is None or isinstance(value, (Tensor, bool, int, float, str))


def warn_of_lost_state(cfg: Config) -> None:
    """Say which parts of a config remember what no checkpoint holds."""
    kinds = {type_of(node) for _, node in walk(cfg.to_dict())}
    lost = sorted(kinds & set(FORGETFUL))
    if lost:
        print(
            f'warning: {join(lost)} keep what checkpoints do not have: the resumed run goes on, '
            'and its numbers are not those of an uninterrupted one',
            file=sys.stderr,
        )


def check_random_state(state: Any) -> None:
    """Refuse states of generators that would read beyond their numbers.

    Args:
        state: What :func:`~mmpoolformer.engine.resuming.random_state` returned.

    Raises:
        LaunchError: It is none.
    """
    try:
        _, keys, position, _, _ = state['numpy']
        torch_state = state['torch'].cpu().contiguous().numpy().tobytes()
        python = all(is_integer(number) for number in state['python'][1])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise LaunchError('its random_state is none') from error
    if not python or keys.shape != (MERSENNE,) or not is_integer(position):
        raise LaunchError('its random_state has another number of numbers than the generators')
    if not 0 <= position <= MERSENNE:
        raise LaunchError(f"its random_state has position {position} in NumPy's generator")
    # Numbers left until the next block, and the next one of this block.
    left = int.from_bytes(torch_state[8:12], 'little', signed=True)
    following = int.from_bytes(torch_state[16:24], 'little')
    if not 0 < left <= MERSENNE or left + following > MERSENNE + 1:
        raise LaunchError(f"its random_state has position {following} in PyTorch's generator")
