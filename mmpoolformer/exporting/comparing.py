"""Compare what a model file computes with what PyTorch does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import join

TOLERANCE = 1e-3
NEAR = 0.05  # how far counterparts are apart at most, in sides of the image and in scores


class Difference(NamedTuple):
    """How far two predictions are apart.

    Attributes:
        what: Of which output.
        size: In parts of the whole: of the image's longer side, of the score 1, of the largest
            value, of all pixels, of all detections.
    """

    what: str
    size: float


def largest(differences: Iterable[Difference]) -> list[Difference]:
    """The largest difference of each output."""
    found: dict[str, float] = {}
    for what, size in differences:
        found[what] = max(found.get(what, 0.0), size)
    return [Difference(*item) for item in found.items()]


def describe(differences: list[Difference]) -> str:
    """Differences as a message lists them."""
    return join(f'{what} {size:.1e}' for what, size in differences)


def compare_tensors(names: Iterable[str], ours: Iterable, theirs: Iterable) -> list[Difference]:
    """Compare raw outputs; differences are relative to the largest value of each."""
    return [
        Difference(name, _relative(torch.as_tensor(a), torch.as_tensor(b)))
        for name, a, b in zip(names, ours, theirs, strict=True)
    ]


def compare_samples(ours, theirs) -> list[Difference]:
    """Compare what two models added to a data sample of mmdet's or mmseg's."""
    if 'pred_instances' in theirs:
        shape = theirs.metainfo['ori_shape'][:2]
        return compare_detections(ours.pred_instances, theirs.pred_instances, max(shape))
    labels = (ours.pred_sem_seg.data != theirs.pred_sem_seg.data).float().mean().item()
    logits = _relative(ours.seg_logits.data, theirs.seg_logits.data)
    return [Difference('labels', labels), Difference('logits', logits)]


def compare_detections(ours, theirs, side: int) -> list[Difference]:
    """Compare detections, each with the nearest of the same class.

    One without a counterpart counts by its score over the least that either list kept: where lists
    are cut off, detections of the same score may change places. If none has a counterpart, all
    count as lost.
    """
    scale = torch.tensor([side] * 4 + [1.0])
    rows = [torch.cat([each.bboxes, each.scores[:, None]], 1) / scale for each in (ours, theirs)]
    lost = abs(len(ours.labels) - len(theirs.labels)) / max(len(theirs.labels), 1)
    if not (len(ours.labels) and len(theirs.labels)):
        return [Difference('detections', lost)]
    apart = torch.cdist(rows[1], rows[0], p=float('inf'))
    apart[theirs.labels[:, None] != ours.labels[None]] = float('inf')
    distance, mate = apart.min(1)
    is_matched, is_known = distance < NEAR, apart.min(0).values < NEAR
    alone = torch.cat([theirs.scores[~is_matched], ours.scores[~is_known]])
    over_least = alone - torch.cat([theirs.scores, ours.scores]).min()
    pairs = rows[0][mate[is_matched]] - rows[1][is_matched]
    out = [Difference('detections', lost if is_matched.any() else 1.0)]
    out.append(Difference('boxes', _max(pairs[:, :4])))
    out.append(Difference('scores', max(_max(pairs[:, 4]), _max(over_least))))
    if 'masks' in theirs:
        masks = ours.masks[mate[is_matched]] != theirs.masks[is_matched]
        out.append(Difference('masks', _max(masks.float().flatten(1).mean(1))))
    return out


def _relative(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float('inf')
    apart = _max(ours.double() - theirs.double())
    return apart if math.isinf(apart) else apart / max(_max(theirs.double()), 1e-12)


def _max(values: Tensor) -> float:
    largest = values.abs().max().item() if values.numel() else 0.0
    return float('inf') if math.isnan(largest) else largest
