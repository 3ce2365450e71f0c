"""What of a schedule follows when the learning rate or the batches change."""

from __future__ import annotations

from ..utils.config_tree import walk
from .edit import Edit


def scale_least_rates(edit: Edit, ratio: float) -> None:
    """Let schedules end at the same part of the learning rate: their ``eta_min`` is absolute."""
    for at, scheduler in list(walk(edit.find(('param_scheduler',)), ('param_scheduler',))):
        if scheduler.get('eta_min'):
            least = float(f'{scheduler["eta_min"] * ratio:.3g}')
            edit.set((*at, 'eta_min'), least, 'scaled with the learning rate')


def images_per_step(edit: Edit, batch_size: int) -> int:
    """Images that a step of the optimizer sees: those of all accumulated gradients."""
    return batch_size * (edit.find(('optim_wrapper',)).get('accumulative_counts') or 1)
