"""The curves that a training leaves, and the log they are drawn from."""

import json
import os
import signal

import pytest
from helpers import run_tool, tool_error, write_tiny_config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from mmpoolformer.engine import curves
from mmpoolformer.engine.curves import PICTURE, panels_of, panels_of_keys, smoothed
from mmpoolformer.engine.scalars import Points, read_run, read_runs
from mmpoolformer.utils.errors import LaunchError


def write_log(folder, *records, run='20260101_000000'):
    """What mmengine's LocalVisBackend writes, with half a line at its end."""
    path = folder / run / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records) + '{"loss": 0.')
    return folder


def step(iteration, **values):
    return dict(values, lr=0.1, time=1.0, iter=iteration, step=iteration)


def own_visualizer(name):
    """mmengine keeps a visualizer, and its folder, per name."""
    return ['--cfg-options', f'visualizer.name={name}']


class Fail(Hook):
    """Break or end the training at its third iteration."""

    def __init__(self, by):
        self.by = by

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == 3:
            if self.by == 'error':
                raise ArithmeticError
            os.kill(os.getpid(), signal.SIGTERM)


HOOKS.register_module(module=Fail, force=True)


@pytest.mark.parametrize('loop', ['by_iteration', 'by_epoch'])
def test_a_training_leaves_its_curves(loop, digits_root, tmp_path):
    config = write_tiny_config(tmp_path, loop, digits_root)
    run_tool('train', config, '--work-dir', tmp_path / 'run', *own_visualizer(loop))
    image = Image.open(tmp_path / 'run' / PICTURE)
    assert min(image.size) > 400 and len(image.convert('RGB').getcolors(2**20)) > 100
    run = read_run(tmp_path / 'run')
    assert run.training['loss'].iterations == list(range(1, 9))
    assert run.validation['mIoU'].iterations == [4, 8]


@pytest.mark.parametrize('by, stop', [('error', ArithmeticError), ('SIGTERM', SystemExit)])
def test_a_training_that_is_stopped_leaves_its_curves(by, stop, digits_root, tmp_path):
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root)
    with config.open('a') as file:
        file.write(f'custom_hooks = [dict(type="Fail", by={by!r}, priority="VERY_LOW")]\n')
    with pytest.raises(stop):
        run_tool('train', config, '--work-dir', tmp_path / 'run', *own_visualizer(by))
    assert (tmp_path / 'run' / PICTURE).is_file()
    assert read_run(tmp_path / 'run').training['loss'].iterations == [1, 2, 3]


def test_curves_that_cannot_be_drawn_are_one_warning(tmp_path, monkeypatch, log):
    write_log(tmp_path, step(1, loss=1.0))

    def full_disk(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(curves, 'draw', full_disk)
    curves.leave_curves(tmp_path, curves.MMLogger.get_current_instance())
    ((level, message),) = log
    assert level == 'WARNING'
    assert 'No space left' in message and 'tools/plot_curves.py' in message


def test_a_training_without_scalars_leaves_no_picture_and_no_warning(tmp_path, log):
    curves.leave_curves(tmp_path, curves.MMLogger.get_current_instance())
    assert not log and not list(tmp_path.iterdir())


def test_a_resumed_run_joins_what_was_before(tmp_path):
    write_log(tmp_path, *(step(i, loss=1.0) for i in (1, 2, 3, 4)))
    write_log(tmp_path, *(step(i, loss=2.0) for i in (3, 4, 5)), run='20260102_000000')
    assert read_run(tmp_path).training['loss'] == Points([1, 2, 3, 4, 5], [1, 1, 2, 2, 2])


def test_evaluations_by_epoch_stand_at_their_iterations(tmp_path):
    evaluation = {'coco/bbox_mAP': 0.5, 'time': 1.0}
    records = [step(50, epoch=1), evaluation | dict(step=1)]
    records += [step(100, epoch=2), evaluation | dict(step=2)]
    run = read_run(write_log(tmp_path, *records))
    assert run.validation == {'coco/bbox_mAP': Points([50, 100], [0.5, 0.5])}


def test_names_with_a_phase_are_those_without(tmp_path):
    hierarchy = {'train/loss': 1.0, 'iter': 1, 'step': 1}, {'val/mIoU': 2.0, 'step': 1}
    run = read_run(write_log(tmp_path, *hierarchy))
    assert list(run.training) == ['loss'] and list(run.validation) == ['mIoU']


def test_sizes_that_no_object_has_are_not_drawn(tmp_path):
    records = [{'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_l': -1.0, 'step': 1}]
    *_, validation = panels_of(read_run(write_log(tmp_path, *records)))
    assert list(validation.curves) == ['coco/bbox_mAP']


def test_of_many_losses_the_whole_and_the_heaviest_are_drawn(tmp_path):
    losses = {f'd{i}.loss_cls': i / 100 for i in range(20)}
    run = read_run(write_log(tmp_path, step(1, loss=0.001, **losses)))
    panel, *_ = panels_of(run)
    assert list(panel.curves)[:3] == ['loss', 'd19.loss_cls', 'd18.loss_cls']
    assert len(panel.curves) + panel.left_out == 21 and panel.left_out > 0


def test_the_only_part_of_a_loss_is_not_drawn_twice(tmp_path):
    record = step(1, loss=1.0) | {'decode.loss_ce': 1.0}
    panel, *_ = panels_of(read_run(write_log(tmp_path, record)))
    assert list(panel.curves) == ['loss']


def test_smoothing_keeps_a_constant_and_short_curves():
    assert smoothed([3.0] * 100) == pytest.approx([3.0] * 100)
    assert list(smoothed([1.0, 5.0, 2.0])) == [1.0, 5.0, 2.0]
    assert smoothed([0.0, 1.0] * 50).std() < 0.2


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write_log(tmp_path / name / 'run', step(1, loss=1.0)) for name in 'ab']
    assert [run.name for run in read_runs(paths)] == ['a/run', 'b/run']


def test_compared_are_the_loss_the_main_metrics_and_the_learning_rate(tmp_path):
    evaluation = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.7, 'step': 1}
    runs = read_runs([write_log(tmp_path, step(1, loss=1.0, loss_cls=0.5), evaluation)])
    assert [panel.title for panel in panels_of_keys(runs, None)] == ['loss', 'coco/bbox_mAP', 'lr']


@pytest.mark.parametrize(
    'line',
    ['[' * 100_000, '{"loss": 1e400, "step": 2, "iter": 2}', f'{{"loss": 1{"0" * 400}, "step": 2}}',
     '{"loss": 1e308, "step": 2, "iter": 2}', '{"loss": -1e308, "step": 1e999, "iter": 2}'],
    ids=['lists', 'inf', 'digits', 'large', 'steps'],
)  # fmt: skip
def test_a_log_that_is_none_is_drawn_without_it(line, tmp_path):
    work = write_log(tmp_path / 'work', step(1, loss=1.0))
    with (work / '20260101_000000' / 'vis_data' / 'scalars.json').open('a') as file:
        file.write(f'5}}\n{line}\n')
    run_tool('plot_curves', work, '-o', tmp_path / 'a.png')
    assert Image.open(tmp_path / 'a.png').size[0] > 0


def test_names_are_no_formulas(tmp_path):
    run_tool('plot_curves', write_log(tmp_path / '$\\foo$', step(1, **{r'loss_$\bar$': 1.0})))


def test_a_picture_that_cannot_be_written_is_a_message(tmp_path, capsys):
    work = write_log(tmp_path / 'work', step(1, loss=1.0))
    (tmp_path / 'file').write_text('')
    message = tool_error(capsys, 'plot_curves', work, '-o', tmp_path / 'file' / 'a.png')
    assert 'a.png cannot be written' in message


def test_an_evaluation_that_is_made_up_for_stands_once(tmp_path):
    first = write_log(tmp_path, step(1, loss=1.0), dict(mIoU=0.5, step=1))
    write_log(tmp_path, dict(mIoU=0.6, step=1), step(2, loss=0.9), run='20260101_000001')
    assert read_run(first).validation['mIoU'] == Points([1], [0.6])


def test_a_pipe_is_no_log(tmp_path):
    (tmp_path / 'run' / 'vis_data').mkdir(parents=True)
    os.mkfifo(tmp_path / 'run' / 'vis_data' / 'scalars.json')
    assert not read_run(tmp_path).training


def test_of_many_metrics_some_are_drawn(tmp_path):
    evaluation = {f'{k}/mAP': 0.5 for k in range(500)} | {'step': 1}
    runs = read_runs([write_log(tmp_path, step(1, loss=1.0), evaluation)])
    assert len(panels_of_keys(runs, None)) == 2 + curves.MOST_PANELS


def test_a_key_that_no_run_has_is_named_with_the_nearest(tmp_path):
    runs = read_runs([write_log(tmp_path, step(1, loss_cls=1.0))])
    with pytest.raises(LaunchError, match=r'loss_clss.*did you mean loss_cls'):
        panels_of_keys(runs, ['loss_clss'])
