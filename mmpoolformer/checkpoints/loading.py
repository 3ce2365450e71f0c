"""Load the weights of any known layout into a backbone: all of them, or none and an error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..archs import NUM_STAGES
from .layouts import BLOCK_PARTS, FAMILY_PARTS, CheckpointError, Part
from .recognition import Weights, arch_name, arch_names, find_weights
from .sources import read_state_dict

CLASSIFIER_PARTS = ('norm', 'head', 'head1', 'head_norm', 'head2')
HEAD = ('head.weight', 'head.bias')
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Report(NamedTuple):
    """What a checkpoint holds and what became of it.

    Attributes:
        source: Where it was read from.
        layout: Name of its layout.
        prefix: What stands before the layout's own names.
        arch: Name or description of its architecture.
        loaded: Number of tensors loaded; ``None`` when it was only inspected.
        notes: What is at its initial value, left out, adapted or unexpected, by kind.
    """

    source: str
    layout: str
    prefix: str
    arch: str
    loaded: int | None
    notes: dict[str, str]

    def __str__(self) -> str:
        rows = {'layout': self.layout + (f', behind {self.prefix!r}' if self.prefix else '')}
        rows['arch'] = self.arch
        if self.loaded is not None:
            rows['loaded'] = f'{self.loaded} tensors'
        rows.update(self.notes)
        return '\n'.join([self.source, *(f'  {key:<10} {value}' for key, value in rows.items())])


def load_pretrained(
    model: nn.Module, source: str, prefix: str = '', allow_pickle: bool = False
) -> Report:
    """Load pretrained weights into a PoolFormer, after every check has passed.

    Args:
        model: A :class:`~mmpoolformer.PoolFormer`.
        source: A path, a URL, ``timm://NAME`` or ``hf://OWNER/NAME``, in any layout.
        prefix: What the backbone's keys start with, if the file holds several.
        allow_pickle: Read files that execute code; only for files whose author you trust.

    Returns:
        The report, which is also logged.

    Raises:
        CheckpointError: The file cannot be read, is none of a PoolFormer, is one of another
            architecture, lacks tensors, or has ones of other shapes, with NaN or Inf. The model
            is as it was.
    """
    return prepare(model, source, prefix, allow_pickle).load(model)


class Prepared(NamedTuple):
    """Weights that have passed every check, and their report."""

    tensors: dict[str, Tensor]
    report: Report

    def load(self, model: nn.Module) -> Report:
        """Copy them into the model and log the report."""
        own = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                own[key].copy_(tensor)
        print_log(f'pretrained weights from {self.report}', logger='current')
        return self.report


def prepare(
    model: nn.Module, source: str, prefix: str = '', allow_pickle: bool = False
) -> Prepared:
    """Do all of :func:`load_pretrained` but the loading."""
    if any(block.deployed for block in model.blocks):
        raise CheckpointError(
            f'{source}: the backbone was folded by switch_to_deploy: build it anew, load, then fold'
        )
    state_dict = read_state_dict(source, allow_pickle)
    try:
        weights = _settle_last_norm(find_weights(state_dict, prefix), model)
        tensors, notes = _fit(weights, model)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    return Prepared(
        tensors,
        Report(str(source), weights.layout, weights.prefix, weights.arch_name, len(tensors), notes),
    )


def inspect(source: str, prefix: str = '', allow_pickle: bool = False) -> Report:
    """Report what a checkpoint holds, without a model; for the arguments, see above.

    Raises:
        CheckpointError: As in :func:`load_pretrained`, but for what concerns a model.
    """
    weights = find_weights(read_state_dict(source, allow_pickle), prefix)
    check_complete(weights)
    notes = {'tensors': str(len(weights.tensors))}
    notes['norms'] = _summary(
        [part.key(weights.layout) for part in weights.tensors if part.name in ('out_norm', 'norm')]
    )
    notes['head'] = 'present' if weights.has_classifier else 'absent'
    notes['others'] = _summary(weights.others)
    return Report(str(source), weights.layout, weights.prefix, weights.arch_name, None, notes)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Give a stem's kernel another number of input channels, as timm's adapt_input_conv does.

    One channel gets the sum over the colours; any other number repeats the colours, scaled to
    keep the size of the response.

    Args:
        weight: Kernel ``[out, 3, height, width]``.
        in_channels: The new number of input channels.
    """
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    colours = weight.shape[1]
    repeated = weight.repeat(1, math.ceil(in_channels / colours), 1, 1)[:, :in_channels]
    return repeated * (colours / in_channels)


def _settle_last_norm(weights: Weights, model: nn.Module) -> Weights:
    """Read a lone norm of the last stage as the output norm, where that is the only one."""
    lone = weights.layout == 'mmpretrain' and all(part.name != 'head' for part in weights.tensors)
    if not lone or model.out_indices != (NUM_STAGES - 1,):
        return weights
    tensors = {
        Part('out_norm', NUM_STAGES - 1, kind=part.kind) if part.name == 'norm' else part: tensor
        for part, tensor in weights.tensors.items()
    }
    return weights._replace(layout='official', tensors=tensors)


def _fit(weights: Weights, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Check everything; return the tensors to copy by the model's names, and the notes."""
    check_complete(weights)
    _check_arch(weights, model)
    expected = model.state_dict()
    tensors = {
        part.key('official') or part.name: tensor for part, tensor in weights.tensors.items()
    }
    notes = _fit_stem(tensors, model)
    left_out = _pop_classifier(tensors, expected, model)
    _check_family(weights, expected, model)
    # Stages and output norms that this model does without.
    left_out += [key for key in tensors if key not in expected]
    tensors = {key: tensor for key, tensor in tensors.items() if key in expected}
    if left_out:
        notes['left out'] = _summary(left_out) + (
            ' (expected: the classification norm under the name of an output norm, '
            'which saw averaged features, and the head)'
            if weights.layout == 'mmpretrain'
            else ' (expected: this backbone has none of them)'
        )
    initial = _check_missing([key for key in expected if key not in tensors], weights, model)
    if initial:
        notes['initial'] = _summary(initial) + ' (expected: the file has none for them)'
    _check_shapes(tensors, expected)
    tensors = {key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()}
    _check_finite(tensors)
    if weights.others:
        notes['others'] = _summary(weights.others) + ' (not part of a PoolFormer)'
    return tensors, notes


def _fit_stem(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Adapt the kernel of the stem to the model's images; return the note of it."""
    stem = Part('stem', kind='weight').key('official')
    if stem not in tensors or tensors[stem].ndim != 4:
        return {}
    if tensors[stem].shape[1] != 3 or model.in_channels == 3:
        return {}
    tensors[stem] = adapt_stem(tensors[stem].float(), model.in_channels)
    return {'adapted': f'{stem} from 3 to {model.in_channels} input channels, as timm does'}


def _pop_classifier(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], model: nn.Module
) -> list[str]:
    """Take out what the model has no place for: a head of other classes, or all for a backbone."""
    taken = [key for key in tensors if key.split('.')[0] in CLASSIFIER_PARTS]
    if not model.fork_feat:
        same = all(key in tensors and tensors[key].shape == expected[key].shape for key in HEAD)
        taken = [] if same else [key for key in HEAD if key in tensors]
    for key in taken:
        del tensors[key]
    return taken


def _check_missing(missing: list[str], weights: Weights, model: nn.Module) -> list[str]:
    """Check that only what may be is absent from the file; return that."""
    optional = [key for key in missing if _may_be_absent(key, weights, model)]
    missing = [key for key in missing if key not in optional]
    if missing:
        message = f'it lacks {len(missing)} tensors: {_summary(missing)}'
        if any('.token_mixer.' in key for key in missing):
            message += f'. It is {weights.arch_name}: the backbone has other token mixers'
        raise CheckpointError(message)
    return optional


def _check_shapes(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    different = [
        f'{key} is {tuple(tensors[key].shape)} in the file and {tuple(value.shape)} in the model'
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if different:
        raise CheckpointError('shapes differ: ' + '; '.join(different[:5]))


def _may_be_absent(key: str, weights: Weights, model: nn.Module) -> bool:
    """Whether a tensor may keep its initial value because files of this kind do not have it."""
    if not model.fork_feat:
        return key in HEAD
    has_out_norms = any(part.name == 'out_norm' for part in weights.tensors)
    # RetinaNet's files have no norm for the stage that it does not use.
    has_norm0 = any(part.name == 'out_norm' and part.stage == 0 for part in weights.tensors)
    return key.startswith('norm') and (
        not has_out_norms or (key.startswith('norm0.') and not has_norm0)
    )


def _check_arch(weights: Weights, model: nn.Module) -> None:
    found, wanted = weights.arch, model.arch
    built = len(model.stages)
    fits = all(
        getattr(found, field)[:built] == tuple(getattr(wanted, field))[:built]
        for field in ('layers', 'embed_dims')
    )
    if not fits:
        name = arch_name(found)
        raise CheckpointError(
            f'the file is {name}, the backbone is {arch_name(wanted)}: set arch='
            + (repr(name) if '(' not in name else name)
        )


def _check_family(weights: Weights, expected: dict, model: nn.Module) -> None:
    """Check that no block has more in the file than in the model: it would be another mixer."""
    built = len(model.stages)
    foreign = [
        part.key('official')
        for part in weights.tensors
        if (part.name in FAMILY_PARTS or part.name in BLOCK_PARTS)
        and part.stage < built
        and part.key('official') not in expected
    ]
    if foreign:
        own = 'a PoolFormer' if type(model).__name__ == 'PoolFormer' else 'this backbone'
        raise CheckpointError(
            f'it has {len(foreign)} tensors that {own} does not have '
            f'({", ".join(foreign[:5])}): it is another MetaFormer, '
            f'{" or ".join(arch_names(weights.arch)) or weights.arch_name}: '
            "take type='MetaFormer' with its arch"
        )


def check_complete(weights: Weights) -> None:
    """Check that a checkpoint holds a whole backbone of finite numbers.

    Raises:
        CheckpointError: It does not.
    """
    missing = weights.missing()
    if missing:
        raise CheckpointError(f'it lacks {len(missing)} tensors: {_summary(missing)}')
    named = {part.key(weights.layout): tensor for part, tensor in weights.tensors.items()}
    for part, tensor in weights.tensors.items():
        if tensor.dtype not in FLOATS and part.name != 'mixer':  # which may count
            key = part.key(weights.layout)
            raise CheckpointError(f'{key} holds {tensor.dtype}, not one of {FLOATS}')
        if part.is_pointwise and tensor.ndim != 4:
            key = part.key(weights.layout)
            raise CheckpointError(f'{key} is {tuple(tensor.shape)}, no kernel of a convolution')
    _check_finite(named)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f'NaN or Inf in {len(bad)} tensors: {_summary(bad)}')


def _summary(keys) -> str:
    """Modules of the given keys in short."""
    names = list(dict.fromkeys(str(key).rsplit('.', 1)[0] for key in keys))
    more = f' and {len(names) - 8} more' if len(names) > 8 else ''
    return (' '.join(names[:8]) + more) or 'none'
