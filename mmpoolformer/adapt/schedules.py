"""What of a schedule follows when the learning rate or the batches change."""

from __future__ import annotations

from ..archs import is_number
from ..utils.config_tree import type_of, walk
from .edit import Edit


def scale_rates(edit: Edit, ratio: float) -> None:
    """Let schedules begin and end at the same part of the learning rate as before.

    What they say of it is absolute.
    """
    for at, scheduler in list(walk(edit.find(('param_scheduler',)), ('param_scheduler',))):
        for name in ('eta_min', 'eta_max', 'min_value'):
            value = scheduler.get(name)
            if type_of(scheduler).endswith('LR') and is_number(value) and value:
                edit.set(
                    (*at, name), float(f'{value * ratio:.3g}'), 'scaled with the learning rate'
                )


def images_per_step(edit: Edit, batch_size: int) -> int:
    """Images that a step of the optimizer sees: those of all accumulated gradients."""
    return batch_size * (edit.find(('optim_wrapper',)).get('accumulative_counts') or 1)
