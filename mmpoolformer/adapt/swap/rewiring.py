"""Let the neck and the heads read the stages of PoolFormer.

What reads the maps decides which stages are returned: one that nobody reads would be idle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...archs import is_integer
from ...utils.config_tree import has, type_of, walk
from ...utils.errors import join
from ..edit import Edit
from .rules import INDEXED_NECKS, REVERSED_NECKS, STRIDES, SwapError


def rewire(
    edit: Edit,
    at: tuple,
    stages: list[int],
    dims: Sequence[int],
    segments: bool,
    deeper: int = 0,
) -> list[int]:
    """Adapt what reads the backbone's maps.

    Args:
        edit: The config.
        at: Path of the model that has the backbone.
        stages: The stage for each map that the old backbone returns.
        dims: Channels of all stages.
        segments: Whether the model is a segmentor.
        deeper: How many maps follow them, each of twice the stride of the one before.

    Returns:
        The stages that are read, which the new backbone must return.

    Raises:
        SwapError: The config does not say what is read.
    """
    if edit.get(at).get('neck'):
        if deeper:
            return _downsample_for_neck(edit, at, stages, dims, deeper)
        return _rewire_neck(edit, at, stages, dims)
    if deeper:
        raise SwapError(f'it has no neck that could make {deeper} maps beyond stride {STRIDES[-1]}')
    if segments:
        return _rewire_segmentation_heads(edit, at, stages, dims)
    _rewire_detection_heads(edit, at, stages, dims)
    return stages


def _rewire_neck(edit: Edit, at: tuple, stages: list[int], dims: Sequence[int]) -> list[int]:
    path = (*at, 'neck')
    if isinstance(edit.get(path), (list, tuple)):
        path = (*path, 0)
    neck = edit.get(path)
    kind = type_of(neck)
    if 'in_channels' not in neck:
        raise SwapError(f'its neck {kind} does not say in in_channels what it reads')
    if is_integer(neck['in_channels']):
        edit.set((*path, 'in_channels'), dims[stages[-1]], 'the stage it reads')
        return stages[-1:]
    count = len(neck['in_channels'])
    if count > len(stages):
        raise SwapError(
            f'its neck {kind} reads {count} maps and its backbone returns {len(stages)}'
        )
    # Maps that the neck passes by would leave a norm without gradient, which DDP refuses.
    stages = _skip_levels(edit, path, stages[-count:])
    widths = [dims[stage] for stage in stages]
    listed = widths[::-1] if kind in REVERSED_NECKS else widths
    edit.set((*path, 'in_channels'), listed, 'the stages it reads')
    if kind == 'SSDNeck':
        for passed_on in ((*path, 'out_channels'), (*at, 'bbox_head', 'in_channels')):
            channels = widths + list(edit.get(passed_on))[len(widths) :]
            edit.set(passed_on, channels, 'the neck passes the stages on')
    if kind == 'JPU':  # passes on all maps but the last
        for head_path, head in _segmentation_heads(edit.get(at), at):
            index = head.get('in_index', -1)
            if isinstance(index, int) and 0 <= index < len(stages) - 1:
                edit.set((*head_path, 'in_channels'), widths[index], 'the stage it reads')
    return stages


def _downsample_for_neck(
    edit: Edit, at: tuple, stages: list[int], dims: Sequence[int], deeper: int
) -> list[int]:
    """Put a neck before the neck, which goes on from the last stage with strided convolutions."""
    path, width, count = (*at, 'neck'), dims[stages[-1]], len(stages) + deeper
    necks = edit.get(path)
    necks = list(necks) if isinstance(necks, (list, tuple)) else [necks]
    if len(necks[0].get('in_channels') or ()) != count:
        raise SwapError(f'its neck {type_of(necks[0])} does not read the {count} maps')
    downsampling = dict(
        type='ChannelMapper',
        in_channels=[dims[stage] for stage in stages],
        out_channels=width,
        kernel_size=1,
        act_cfg=None,
        num_outs=count,
    )
    new = [downsampling, dict(necks[0], in_channels=[width] * count), *necks[1:]]
    edit.set(path, new, f'strided convolutions beyond stride {STRIDES[-1]}')
    return stages


def _skip_levels(edit: Edit, path: tuple, stages: list[int]) -> list[int]:
    """Let the backbone leave out the maps that the neck at ``path`` skips."""
    neck = edit.get(path)
    start, end = neck.get('start_level', 0), neck.get('end_level', -1)
    if not start:
        return stages
    if type_of(neck) in INDEXED_NECKS:
        reason = f'{type_of(neck)} asks for maps that it does not use'
        edit.set(('find_unused_parameters',), True, reason)
        return stages
    edit.set((*path, 'start_level'), 0, 'the backbone returns only what is read')
    if end > 0:
        edit.set((*path, 'end_level'), end - start, 'counted from the new start_level')
    return stages[start:]


def _rewire_segmentation_heads(
    edit: Edit, at: tuple, stages: list[int], dims: Sequence[int]
) -> list[int]:
    heads = _levels_of_heads(edit.get(at), at, len(stages))
    read = {level for *_, levels in heads for level in levels}
    read |= {0 for _, head, _ in heads if 'c1_in_channels' in head}
    if not read:
        raise SwapError('no head says in in_channels what it reads')
    if not read <= set(range(len(stages))):
        raise SwapError(f'its heads read maps {join(sorted(read))} of {len(stages)}')
    kept = sorted(read)
    for path, head, levels in heads:
        channels = [dims[stages[level]] for level in levels]
        index = [kept.index(level) for level in levels]
        listed = isinstance(head['in_channels'], (list, tuple))
        if not listed:
            channels, index = channels[0], index[0]
        edit.set((*path, 'in_channels'), channels, 'the stages it reads')
        if head.get('num_convs') == 0:
            edit.set((*path, 'channels'), channels, 'as wide as what it reads')
        if 'c1_in_channels' in head:
            edit.set((*path, 'c1_in_channels'), dims[stages[0]], 'the first stage')
        if 'in_index' in head or (not listed and index != len(kept) - 1):
            edit.set((*path, 'in_index'), index, 'counted over the maps that are read')
    return [stages[level] for level in kept]


def _levels_of_heads(model: dict, at: tuple, count: int) -> list[tuple[tuple, dict, list[int]]]:
    """Path and config of each head that reads maps, and which of ``count`` maps it reads."""
    heads = [
        (path, head, _levels_read(head, count))
        for path, head in _segmentation_heads(model, at)
        if 'in_channels' in head
    ]
    for k in range(1, len(heads)):
        # It weighs its own map with the head's before it: in dilated networks of one size.
        if type_of(heads[k][1]) == 'OCRHead' and len(heads[k][2]) == 1:
            heads[k - 1] = (*heads[k - 1][:2], heads[k][2])
    return heads


def _levels_read(head: dict, count: int) -> list[int]:
    listed = isinstance(head['in_channels'], (list, tuple))
    index = head.get('in_index', list(range(count)) if listed else -1)
    index = list(index) if isinstance(index, (list, tuple)) else [index]
    if type_of(head) == 'EncHead' and not head.get('add_lateral'):
        index = index[-1:]  # it is given more, and uses the last
    return [level % count if level < 0 else level for level in index]


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


def _rewire_detection_heads(edit: Edit, at: tuple, stages: list[int], dims: Sequence[int]) -> None:
    """Without a neck: heads of several maps are rewired, those of one map get a projection.

    A head that reads one map (C4, DC5) takes its width from there through several
    modules, some of them fixed to ResNet's last stage.
    """
    read = {key: node for key, node in edit.get(at).items() if has(node, 'in_channels')}
    widths = {node['in_channels'] for node in read.values() if is_integer(node['in_channels'])}
    if not read or len(widths) > 1 or (widths and len(stages) > 1):
        raise SwapError('it has no neck, and its heads do not say in in_channels what they read')
    channels = [dims[stage] for stage in stages]
    if widths:
        neck = dict(
            type='ChannelMapper',
            in_channels=channels,
            out_channels=widths.pop(),
            kernel_size=1,
            act_cfg=None,
            num_outs=1,
        )
        edit.set((*at, 'neck'), neck, 'a 1×1 convolution to the width the heads read')
        return
    for key, node in read.items():
        if len(node['in_channels']) != len(stages):
            raise SwapError(
                f'its {key} reads {len(node["in_channels"])} maps '
                f'and its backbone returns {len(stages)}'
            )
        edit.set((*at, key, 'in_channels'), channels, 'the stages it reads')
