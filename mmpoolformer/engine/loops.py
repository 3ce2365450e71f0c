"""The loops of a run, whose data give batches and whose metrics count every object."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner

from ..datasets.coco import rounded_ids
from ..utils.errors import LaunchError, last_line
from .checks import PHASES


def build_loops(runner: Runner, phase: str) -> None:
    """Build the data sets where an error is still one of the data.

    Args:
        runner: Its loops are built in place.
        phase: ``'train'`` or ``'test'``.

    Raises:
        LaunchError: A data set cannot be built, gives no batch or has ids that COCO's evaluation
            does not count.
    """
    if not isinstance(runner, Runner):  # a FlexibleRunner builds them with its strategy
        return
    for split in PHASES[phase]:
        loop = getattr(runner, f'_{split}_loop')
        if loop is None:
            continue
        try:
            loop = getattr(runner, f'build_{split}_loop')(loop)
        except Exception as error:  # whatever the code of a data set raises
            raise LaunchError(
                f'the {split} data set cannot be built: {type(error).__name__}: '
                f'{last_line(error)}. tools/check_dataset.py CONFIG says what is wrong with it'
            ) from error
        setattr(runner, f'_{split}_loop', loop)
        _check_batches(split, loop)
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
            truth = getattr(metric, '_coco_api', None)
            if truth is not None and any(c.__name__ == 'CocoMetric' for c in type(metric).__mro__):
                count_every_object(truth)


def _check_batches(split: str, loop: Any) -> None:
    is_endless = hasattr(loop, 'dataloader_iterator')
    loader = getattr(loop, 'dataloader', None)
    if loader is None or is_endless or len(loader):
        return
    raise LaunchError(
        f'the {split} data set gives no batch: it has {len(loader.dataset)} images, in batches of '
        f'{loader.batch_size} with drop_last={loader.drop_last}. Take smaller batches, or '
        f'{split}_dataloader.drop_last=False'
    )


def count_every_object(truth: Any) -> None:
    """Mend what COCO's evaluation passes over in true boxes, or ends at.

    It takes id 0 for «no object», and needs ``iscrowd``.

    Raises:
        LaunchError: Ids that it rounds.
    """
    for what, entries in dict(image=truth.imgs, annotation=truth.anns, category=truth.cats).items():
        beyond = rounded_ids(entries)
        if beyond:
            raise LaunchError(
                f'{what} id {beyond[0]} is beyond 2^53, and COCO’s evaluation rounds it: number '
                'them anew, in the file of the data set and of the metric'
            )
    for annotation in truth.anns.values():
        annotation.setdefault('iscrowd', 0)
    if 0 in truth.anns:
        number = max(truth.anns) + 1
        truth.anns[number] = truth.anns.pop(0)
        truth.anns[number]['id'] = number
