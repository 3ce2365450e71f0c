"""Schedules of resumed runs: from where the checkpoint stands they go on as the config says."""

import json
import re
import shutil

import pytest
import torch
from helpers import run_tool, tool_error, write_tiny_config

FOUR = 'train_cfg.max_epochs=4'  # of two iterations
TWO = 'train_cfg.max_epochs=2'


@pytest.fixture(scope='module')
def half(digits_root, tmp_path_factory):
    """A run of two of four epochs, whose learning rate drops after the third."""
    folder = tmp_path_factory.mktemp('half')
    config = write_tiny_config(folder, 'by_epoch', digits_root)
    text = config.read_text().replace('milestones=[2]', 'milestones=[3]')
    config.write_text(f'{text}\noptim_wrapper = dict(optimizer=dict(lr=1e-3))\n')
    run_tool('train', config, '--work-dir', folder / 'work', '--cfg-options', TWO)
    return config


@pytest.fixture
def resume(half, tmp_path):
    """Change the config and perhaps the checkpoint, and go on; how it ends."""

    def go_on(old='', new='', options=(), change=None):
        text = half.read_text()
        assert old in text
        (tmp_path / 'changed.py').write_text(text.replace(old, new) if old else text)
        work = shutil.copytree(half.parent / 'work', tmp_path / 'work')
        contents = torch.load(work / 'epoch_2.pth', weights_only=False)
        if change is not None:
            change(contents)
        torch.save(contents, work / 'epoch_2.pth')
        args = 'train', tmp_path / 'changed.py', '--work-dir', work
        run_tool(*args, '--resume', work / 'epoch_2.pth', '--cfg-options', FOUR, *options)
        return torch.load((work / 'last_checkpoint').read_text().strip(), weights_only=False)

    return go_on


def lr(contents):
    return contents['optimizer']['param_groups'][0]['lr']


def log_of(tmp_path, work='work'):
    return ''.join(path.read_text() for path in (tmp_path / work).glob('*/*.log'))


def test_the_same_schedule_goes_on_without_a_word(resume, tmp_path):
    resume(options=[TWO])
    assert 'another schedule' not in log_of(tmp_path)


@pytest.mark.parametrize('milestone', [2, 3])
def test_a_longer_training_drops_its_rate_where_the_config_says(milestone, resume, tmp_path):
    """At 2, the end of the shorter one, mmengine would pass over the drop."""
    contents = resume('milestones=[3]', f'milestones=[{milestone}]')
    assert lr(contents) == pytest.approx(1e-4) and contents['meta']['iter'] == 8
    assert contents['param_schedulers'][0]['last_step'] == 3
    assert 'end of MultiStepLR: 2 → 4' in log_of(tmp_path)


def test_later_milestones_of_the_config_come(resume, tmp_path):
    contents = resume('milestones=[3]', 'milestones=[4, 5]', ['train_cfg.max_epochs=6'])
    assert lr(contents) == pytest.approx(1e-5)
    assert 'milestones of MultiStepLR: 3 → 4, 5' in log_of(tmp_path)


def test_a_later_end_of_the_config_is_reached(half, tmp_path, digits_root):
    """A polynomial that ended after two epochs goes on to the end of the config."""
    schedule = "dict(type='PolyLR', by_epoch=True, eta_min=1e-6, power=1, begin=0, end=END)"
    base = re.sub(r'param_scheduler = .*', f'param_scheduler = [{schedule}]', half.read_text())
    for end, more in ((3, []), (5, ['--resume'])):
        (tmp_path / 'poly.py').write_text(base.replace('end=END', f'end={end}'))
        options = ['--cfg-options', f'train_cfg.max_epochs={end - 1}']
        run_tool('train', tmp_path / 'poly.py', '--work-dir', tmp_path / 'work', *more, *options)
        contents = torch.load(tmp_path / 'work' / f'epoch_{end - 1}.pth', weights_only=False)
        (scheduler,) = contents['param_schedulers']
        assert scheduler['end'] == end and scheduler['last_step'] == end - 1
    assert 'end of PolyLR: 3 → 5' in log_of(tmp_path)


def test_another_learning_rate_is_refused(resume, capsys):
    with pytest.raises(SystemExit, match=r'began with lr=0\.001, the config.s with 0\.01'):
        resume('lr=1e-3', 'lr=1e-2')


def test_another_number_of_schedulers_is_refused(resume):
    with pytest.raises(SystemExit, match='it has 1 param_scheduler, the config 2'):
        resume('param_scheduler = [', "param_scheduler = [dict(type='ConstantLR', end=1),")


def test_an_unscheduled_option_that_differs_is_said(resume, tmp_path):
    contents = resume('lr=1e-3', 'lr=1e-3, weight_decay=0.5')
    assert contents['optimizer']['param_groups'][0]['weight_decay'] != 0.5
    assert 'its optimizer has weight_decay=' in log_of(tmp_path)


ONE = 'train_dataloader.batch_size=1'  # and four iterations an epoch


@pytest.mark.parametrize('known', [True, False], ids=['known', 'computed'])
def test_epochs_of_other_lengths_are_counted_anew(known, resume, tmp_path):
    def forget(contents):
        if not known:
            del contents['iterations_per_epoch']

    contents = resume(options=[ONE], change=forget)
    assert (contents['meta']['epoch'], contents['meta']['iter']) == (4, 16)
    assert lr(contents) == pytest.approx(1e-4)
    assert 'its epochs have 2 iterations, those of the config 4' in log_of(tmp_path)


def test_schedules_in_iterations_of_other_epochs_are_refused(resume):
    converted = 'milestones=[3], convert_to_iter_based=True'
    with pytest.raises(SystemExit, match='param_scheduler counts in them to the end'):
        resume('milestones=[3]', converted, [ONE])


@pytest.mark.parametrize('known', [True, False], ids=['known', 'computed'])
def test_the_middle_of_an_epoch_of_another_length_is_refused(known, resume):
    def interrupt(contents):
        contents['meta'].update(iter=3, epoch=1, interrupted=True)
        if not known:
            del contents['iterations_per_epoch']

    remedy = 'in the middle of epoch 2. Train with the batch size'
    with pytest.raises(SystemExit, match=remedy):
        resume(options=[ONE], change=interrupt)


def test_averaged_weights_without_their_hook_are_refused(resume):
    with pytest.raises(SystemExit, match='averaged by EMAHook, which the config has not'):
        resume("custom_hooks = [dict(type='EMAHook', momentum=0.1)]", '')


def test_the_best_of_another_metric_is_no_measure(half, tmp_path):
    """aAcc is larger than mIoU, which would never be better."""
    config = tmp_path / 'other.py'
    config.write_text(half.read_text().replace("save_best='mIoU'", "save_best='aAcc'"))
    work = tmp_path / 'work'
    run_tool('train', config, '--work-dir', work, '--cfg-options', TWO)
    run_tool('train', half, '--work-dir', work, '--resume', '--cfg-options', FOUR)
    assert list(work.glob('best_mIoU_*.pth')) and list(work.glob('best_aAcc_*.pth'))
    assert 'is of another metric than save_best' in log_of(tmp_path)


def test_classes_in_another_order_are_refused(resume):
    def permute(contents):
        meta = contents['meta']['dataset_meta']
        meta['classes'] = meta['classes'][::-1]

    with pytest.raises(SystemExit, match=r'would be taken for another class'):
        resume(change=permute)


def test_classes_of_other_names_are_said(resume, tmp_path):
    def rename(contents):
        meta = contents['meta']['dataset_meta']
        meta['classes'] = [f'{name} of old' for name in meta['classes']]

    resume(change=rename)
    assert 'they are taken for the same, one by one' in log_of(tmp_path)


def test_a_checkpoint_of_other_classes_is_not_tested(half, tmp_path, capsys):
    contents = torch.load(half.parent / 'work' / 'epoch_2.pth', weights_only=False)
    meta = contents['meta']['dataset_meta']
    meta['classes'] = (meta['classes'][1], meta['classes'][0], *meta['classes'][2:])
    torch.save(contents, tmp_path / 'permuted.pth')
    message = tool_error(
        capsys, 'test', half, tmp_path / 'permuted.pth', '--work-dir', tmp_path / 'work'
    )
    assert 'permuted.pth does not fit the test set' in message
    assert 'would be taken for another class' in message


LINEAR = "dict(type='LinearLR', by_epoch=False, start_factor={}, begin=0, end={})"
POLY = "dict(type='PolyLR', by_epoch=False, power=0.9, eta_min=0.0, begin={}, end={})"
COSINE = "dict(type='CosineAnnealingLR', by_epoch=False, T_max={}, eta_min=1e-5, end={})"
SCHEDULES = {
    'a longer polynomial': ([POLY.format(0, 4)], [POLY.format(0, 8)]),
    'a longer warm-up': (
        [LINEAR.format(0.1, 2), POLY.format(2, 4)],
        [LINEAR.format(0.1, 6), POLY.format(6, 9)],
    ),
    'another warm-up': ([LINEAR.format(0.5, 6)], [LINEAR.format(0.01, 6)]),
    'another kind': ([POLY.format(0, 8)], [COSINE.format(8, 8)]),
    'another order': (
        [LINEAR.format(0.1, 2), POLY.format(2, 8)],
        [POLY.format(2, 8), LINEAR.format(0.1, 2)],
    ),
    'earlier milestones': (
        ["dict(type='MultiStepLR', by_epoch=False, milestones=[6])"],
        ["dict(type='MultiStepLR', by_epoch=False, milestones=[2, 7])"],
    ),
}


def rates(work):
    logs = sorted(work.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    return {line['iter']: line['lr'] for line in lines if 'lr' in line}


@pytest.mark.parametrize('case', SCHEDULES)
def test_rates_are_those_of_a_run_with_the_schedule_of_the_config(case, digits_root, tmp_path):
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root)
    text, work = config.read_text().replace('val_interval=4', 'val_interval=99'), []
    for name, schedule, more in zip('abb', [*SCHEDULES[case], SCHEDULES[case][1]], (4, 8, 8)):
        path = tmp_path / f'{len(work)}{name}.py'
        path.write_text(f'{text}\nparam_scheduler = [{", ".join(schedule)}]\n')
        work.append(tmp_path / ('resumed' if len(work) < 2 else 'whole'))
        resumed = ['--resume'] if len(work) == 2 else []
        options = ['--cfg-options', f'train_cfg.max_iters={more}']
        options += [f'visualizer.name={case}{len(work)}']
        run_tool('train', path, '--work-dir', work[-1], *resumed, *options)
    expected = rates(tmp_path / 'whole')
    assert rates(tmp_path / 'resumed') == {k: pytest.approx(expected[k]) for k in (5, 6, 7, 8)}
    assert 'another schedule than the checkpoint' in log_of(tmp_path, 'resumed')


def test_another_rate_without_a_schedule_is_said(half, tmp_path):
    text = re.sub(r'param_scheduler = .*', 'param_scheduler = None', half.read_text())
    for rate, more in (('1e-3', []), ('1e-5', ['--resume'])):
        (tmp_path / 'a.py').write_text(text.replace('lr=1e-3', f'lr={rate}, betas=(0.5, {rate})'))
        options = ['--cfg-options', FOUR if more else TWO]
        run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / 'work', *more, *options)
    log = log_of(tmp_path)
    assert 'its optimizer has lr=0.001, and the config 1e-05; betas=(0.5, 0.001), and' in log


def test_schedules_that_count_otherwise_are_refused(resume):
    with pytest.raises(SystemExit, match='does not count iterations as MultiStepLR'):
        resume('by_epoch=True, milestones', 'by_epoch=False, milestones')


def test_early_stopping_goes_on_counting(digits_root, tmp_path):
    config = write_tiny_config(tmp_path, 'by_epoch', digits_root, iters=16)
    text = config.read_text().replace('val_interval=2', 'val_interval=1')
    stop = "dict(type='EarlyStoppingHook', monitor='mIoU', min_delta=1000.0, patience=3)"
    other = "dict(type='EarlyStoppingHook', monitor='aAcc', min_delta=-1000.0, patience=3)"
    config.write_text(f'{text}\ncustom_hooks = [{stop}, {other}]\n')
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    options = ['--cfg-options', TWO, 'visualizer.name=first']
    run_tool('train', config, '--work-dir', tmp_path / 'work', *options)
    options = ['--cfg-options', 'visualizer.name=second']
    run_tool('train', config, '--work-dir', tmp_path / 'work', '--resume', *options)
    ends = [sorted(path.name for path in (tmp_path / w).glob('epoch_*')) for w in ('whole', 'work')]
    assert ends[0] == ends[1] and 'epoch_8.pth' not in ends[0]


def test_a_schedule_of_one_cycle_that_was_changed_is_refused(half, tmp_path):
    text = re.sub(
        r'param_scheduler = .*',
        "param_scheduler = [dict(type='OneCycleLR', by_epoch=False, eta_max=1e-3, total_steps=8)]",
        half.read_text(),
    )
    (tmp_path / 'a.py').write_text(text)
    run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / 'work', '--cfg-options', TWO)
    (tmp_path / 'a.py').write_text(text.replace('total_steps=8', 'total_steps=16'))
    with pytest.raises(SystemExit, match='of one cycle, cannot be computed anew'):
        run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / 'work', '--resume')


def test_momentum_follows_a_changed_schedule(half, tmp_path):
    schedule = "param_scheduler = [dict(type='LinearMomentum', start_factor=0.5, end=END)]"
    text = re.sub(r'param_scheduler = .*', schedule, half.read_text())
    betas = {}
    for name, ends in (('work', (3, 6)), ('whole', (6,))):
        for end in ends:
            (tmp_path / 'a.py').write_text(text.replace('END', str(end)))
            more = ['--resume'] if end != ends[0] else []
            options = ['--cfg-options', FOUR if end == ends[-1] else TWO, f'visualizer.name={name}']
            run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / name, *more, *options)
        contents = torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False)
        betas[name] = contents['optimizer']['param_groups'][0]['betas']
    assert betas['work'] == pytest.approx(betas['whole'])


def test_a_plateau_is_still_watched_in_a_longer_training(half, tmp_path):
    plateau = "dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater', patience=99)"
    text = re.sub(r'param_scheduler = .*', f'param_scheduler = [{plateau}]', half.read_text())
    (tmp_path / 'a.py').write_text(text)
    for options, more in ((TWO, []), (FOUR, ['--resume'])):
        args = [*more, '--cfg-options', options, f'visualizer.name={options}']
        run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / 'work', *args)
    (tmp_path / 'a.py').write_text(text.replace('patience=99', 'patience=1'))
    with pytest.raises(SystemExit, match='follows a metric'):
        args = ['--resume', '--cfg-options', 'train_cfg.max_epochs=6']
        run_tool('train', tmp_path / 'a.py', '--work-dir', tmp_path / 'work', *args)
