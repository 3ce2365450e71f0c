"""Pictures of how a model learned: losses, learning rate and metrics by iteration."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger

from ..utils.errors import LaunchError, join, one_line, some
from ..utils.files import replacing
from .checks import nearest
from .scalars import Points, Run, read_run

PICTURE = 'curves.png'
FORMATS = ('.png', '.pdf', '.svg')  # not TeX's, in which the names of metrics would be code
MOST_PANELS = 12  # of metrics, where none are asked for
MOST_LINES = 8  # that a panel holds and an eye tells apart
# Names of metrics of all classes and sizes, which are drawn before those of single ones.
OVERALL = ('mAP', 'mIoU', 'PQ', 'mDice', 'mFscore', 'aAcc', 'mAcc')
BY_SIZE = ('_s', '_m', '_l')  # COCO's small, medium and large
VALIDATION = 'validation'
NO_VALIDATION = 'no evaluation was logged'
NO_TRAINING = 'nothing was logged: is default_hooks.logger.interval longer than the run?'
NOT_MEASURED = -1  # what COCO's metric says of sizes that no object has


class Panel(NamedTuple):
    """One diagram: a heading of its vertical axis, and curves by name."""

    title: str
    curves: dict[str, Points]
    left_out: int = 0


def leave_curves(work_dir: Path, logger: MMLogger) -> None:
    """Draw ``curves.png`` in a work dir at the end of a training, however it ended.

    A picture is not worth a training: what goes wrong is a warning.
    """
    if not is_main_process():
        return
    try:
        run = read_run(work_dir)
        if run.training or run.validation:
            draw(panels_of(run), work_dir / PICTURE, run.name)
            logger.info(f'losses and metrics by iteration: {work_dir / PICTURE}')
    except Exception as error:  # of whatever kind
        logger.warning(
            f'{work_dir / PICTURE} could not be drawn: {one_line(error)}. '
            f'tools/plot_curves.py {work_dir} tries again'
        )


def panels_of(run: Run) -> list[Panel]:
    """Losses, learning rate and metrics of one run."""
    losses = {key: points for key, points in run.training.items() if 'loss' in key}
    whole = losses.get('loss')  # which may have one part alone
    losses = {key: points for key, points in losses.items() if key == 'loss' or points != whole}
    heaviest = sorted(losses, key=lambda key: (key != 'loss', -np.nanmean(losses[key].values)))
    rates = {key: points for key, points in run.training.items() if key.endswith('lr')}
    if rates.get('lr') == rates.get('base_lr'):
        rates.pop('base_lr', None)
    metrics = measured(run)
    return [
        _panel('loss', losses, heaviest),
        _panel('learning rate', rates, list(rates)),
        _panel(VALIDATION, metrics, sorted(metrics, key=_is_special)),
    ]


def panels_of_keys(runs: list[Run], keys: list[str] | None) -> list[Panel]:
    """A panel for each key, with a curve for each run.

    Args:
        runs: The runs.
        keys: Names of losses, learning rates and metrics. ``None`` takes the whole loss, the
            metrics of all classes and sizes, and the learning rate.

    Raises:
        LaunchError: No run has such a key; names the nearest.
    """
    curves = [run.training | measured(run) for run in runs]
    known = list(dict.fromkeys(key for run in curves for key in run))
    if keys is None:
        main = [key for key in known if key.endswith(OVERALL)]
        keys = [key for key in ('loss', *main[:MOST_PANELS], 'lr') if key in known]
        keys = keys or known[:MOST_LINES]
    for key in keys:
        if key not in known:
            near = nearest(key, known)
            remedy = f'did you mean {near}?' if near else f'there are {some(known)}'
            raise LaunchError(f'--keys {key}: no run has logged it; {remedy}')
    return [
        Panel(key, {run.name: logged[key] for run, logged in zip(runs, curves) if key in logged})
        for key in keys
    ]


def measured(run: Run) -> dict[str, Points]:
    """The metrics of a run, without what was not there to be measured."""
    metrics = {}
    for key, points in run.validation.items():
        pairs = [pair for pair in zip(*points) if pair[1] != NOT_MEASURED]
        if pairs:
            metrics[key] = Points(*map(list, zip(*pairs)))
    return metrics


def draw(panels: list[Panel], path: Path, title: str) -> None:
    """Draw panels below each other, with one axis of iterations.

    Args:
        panels: What to draw.
        path: The picture; its ending says in which format.
        title: Its heading.

    Raises:
        LaunchError: It is no picture by its ending, or cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second, and no part in a training

    figure = Figure(figsize=(9, 0.6 + 2.4 * len(panels)), layout='constrained')
    if path.suffix.lower() not in FORMATS:
        raise LaunchError(f'{path}: a picture ends in {join(FORMATS)}')
    figure.suptitle(title, fontsize=10, parse_math=False)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel)
    axes[-1].set_xlabel('iteration')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, suffix=path.suffix) as partial:
            figure.savefig(partial, dpi=110)
    except OSError as error:
        raise LaunchError(f'{path} cannot be written: {one_line(error)}') from error


def smoothed(values: list[float]) -> np.ndarray:
    """The mean of each value and its neighbours, a twentieth of all of them."""
    kernel = np.ones(len(values) // 20 | 1)  # an odd number of them
    sums = np.convolve(values, kernel, 'same')
    return sums / np.convolve(np.ones(len(values)), kernel, 'same')


def _panel(title: str, curves: dict[str, Points], keys: list[str]) -> Panel:
    shown = {key: curves[key] for key in keys[:MOST_LINES]}
    return Panel(title, shown, len(keys) - len(shown))


def _is_special(key: str) -> bool:
    return key.endswith(BY_SIZE) or not any(word in key for word in OVERALL)


def _draw_panel(axis, panel: Panel) -> None:
    axis.set_ylabel(panel.title, parse_math=False)
    axis.grid(alpha=0.3)
    for i, (label, points) in enumerate(panel.curves.items()):
        style = dict(color=f'C{i}', marker='o' if len(points.values) < 20 else None, markersize=3)
        style['linewidth'] = 2 if label == 'loss' else 1.2
        smooth = smoothed(points.values) if 'loss' in panel.title else points.values
        if not np.array_equal(smooth, points.values, equal_nan=True):
            axis.plot(*points, color=f'C{i}', alpha=0.25, linewidth=1)
        axis.plot(points.iterations, smooth, label=label, **style)
    if panel.curves:
        more = f'and {panel.left_out} more (--keys)' if panel.left_out else None
        legend = axis.legend(
            title=more, title_fontsize=8, fontsize=8, loc='upper left', bbox_to_anchor=(1.01, 1)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        text = NO_VALIDATION if panel.title == VALIDATION else NO_TRAINING
        axis.text(0.5, 0.5, text, ha='center', va='center', transform=axis.transAxes, color='grey')
