"""``tools/train.py`` and ``tools/test.py`` on the real toolboxes, over the published layouts."""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import (
    CONFIGS,
    DIGITS,
    ROOT,
    needs_whole_graphs,
    run_tool,
    tool_error,
    train_options,
    write_tiny_config,
)
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DATASETS, init_default_scope

from mmpoolformer.engine import checks

RETINANET = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_1x_coco.py'
MASK_RCNN = CONFIGS / 'detection' / 'mask-rcnn_poolformer-s12_fpn_1x_coco.py'
SEM_FPN = CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'
METRICS = {
    RETINANET: {'coco/bbox_mAP', 'coco/bbox_mAP_50'},
    MASK_RCNN: {'coco/bbox_mAP', 'coco/segm_mAP'},
    SEM_FPN: {'mIoU', 'mAcc', 'aAcc'},
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory, coco_root, ade_root):
    """Train a published config for two iterations, once; return its options and work dir."""
    runs = {}

    def get(config):
        if config not in runs:
            options = train_options(config, ade_root if config == SEM_FPN else coco_root)
            work_dir = tmp_path_factory.mktemp(config.stem)
            run_tool('train', config, '--work-dir', work_dir, *options)
            runs[config] = options, work_dir, work_dir / (work_dir / 'last_checkpoint').read_text()
        return runs[config]

    return get


by_config = pytest.mark.parametrize('config', METRICS, ids=lambda path: path.stem)


@by_config
def test_train_two_iterations_and_evaluate(config, trained):
    _, work_dir, checkpoint = trained(config)
    assert checkpoint.is_file()
    metrics = json.loads((work_dir / 'val_metrics.json').read_text())
    assert METRICS[config] <= set(metrics)
    assert not list(work_dir.glob(config.name)), 'mim would find this config twice'
    assert Config.fromfile(work_dir / 'config.py').model.type == Config.fromfile(config).model.type


@by_config
def test_test_gives_the_metrics_of_the_last_validation(config, trained, tmp_path):
    options, work_dir, checkpoint = trained(config)
    run_tool('test', config, checkpoint, '--work-dir', tmp_path, *options)
    tested = json.loads((tmp_path / 'test_metrics.json').read_text())
    validated = json.loads((work_dir / 'val_metrics.json').read_text())
    assert {key: tested[key] for key in METRICS[config]} == {
        key: validated[key] for key in METRICS[config]
    }


@by_config
def test_deployed_and_compiled_models_test_alike(config, trained, monkeypatch, tmp_path):
    # Inductor itself takes minutes here and is tested with the backbone.
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    options, work_dir, checkpoint = trained(config)
    run_tool('test', config, checkpoint, '--work-dir', tmp_path, '--deploy', '--compile', *options)
    tested = json.loads((tmp_path / 'test_metrics.json').read_text())
    validated = json.loads((work_dir / 'val_metrics.json').read_text())
    for key in METRICS[config]:
        assert tested[key] == pytest.approx(validated[key], rel=0.01, abs=0.01)


def losses(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


@needs_whole_graphs
def test_a_compiled_backbone_trains_alike(ade_root, monkeypatch, tmp_path):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    options = *train_options(SEM_FPN, ade_root), 'default_hooks.logger.interval=1'
    for name, more in (('eager', ()), ('compiled', ('--compile',))):
        run_tool('train', SEM_FPN, '--work-dir', tmp_path / name, '--seed', '0', *more, *options)
        assert bool(compiled) == bool(more)
    expected, actual = losses(tmp_path / 'eager'), losses(tmp_path / 'compiled')
    assert len(actual) == 2 and actual == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('config', DIGITS, ids=lambda path: path.stem)
def test_digits_configs_train_and_evaluate(config, digits_root, tmp_path):
    run_tool('train', config, '--work-dir', tmp_path, *train_options(config, digits_root))
    metrics = json.loads((tmp_path / 'val_metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU'} & set(metrics)


def test_out_and_show_dir_of_a_detector(trained, coco_root, tmp_path):
    options, work_dir, checkpoint = trained(MASK_RCNN)
    predictions = tmp_path / 'predictions.pkl'
    args = ['--work-dir', tmp_path, '--out', predictions, '--show-dir', 'pictures']
    args += [*options, 'visualizer.name=detector']  # mmengine keeps a visualizer per name
    run_tool('test', MASK_RCNN, checkpoint, *args)
    assert len(list(tmp_path.glob('*/pictures/*.jpg'))) == 2
    # The checkpoint was really used: the same boxes as by mmdet's own interface.
    model = init_detector(str(work_dir / 'config.py'), str(checkpoint), device='cpu')
    for saved in load(predictions):
        found = inference_detector(model, saved['img_path']).pred_instances
        torch.testing.assert_close(saved['pred_instances']['scores'], found.scores)
        torch.testing.assert_close(saved['pred_instances']['bboxes'], found.bboxes)


def test_out_and_show_dir_of_a_segmentor(trained, tmp_path):
    options, _, checkpoint = trained(SEM_FPN)
    out, pictures = tmp_path / 'out', tmp_path / 'pictures'
    args = ['--work-dir', tmp_path, '--out', out, '--show-dir', pictures]
    args += [*options, 'visualizer.name=segmentor']  # mmengine keeps a visualizer per name
    run_tool('test', SEM_FPN, checkpoint, *args)
    assert len(list(out.glob('*.png'))) == 2
    assert list(pictures.rglob('*.png'))


@pytest.mark.parametrize('option', ['--out', '--show-dir'])
def test_images_that_share_their_names_are_kept_apart(
    option, trained, coco_root, ade_root, tmp_path, capsys
):
    """Where one file would be written for two."""
    config, at = (SEM_FPN, ade_root) if option == '--out' else (MASK_RCNN, coco_root)
    options, _, checkpoint = trained(config)
    root = shutil.copytree(at, tmp_path / 'data')
    folders = ['images/validation', 'annotations/validation'] if at == ade_root else ['val2017']
    for folder in folders:
        first, second, *_ = sorted((root / folder).iterdir())
        for name, path in (('a', first), ('b', second)):
            (root / folder / name).mkdir()
            path.rename(root / folder / name / f'000{path.suffix}')
    file = root / 'annotations' / 'instances_val2017.json'
    if file.exists():
        coco = json.loads(file.read_text())
        for name, image in zip('ab', sorted(coco['images'], key=lambda i: i['file_name'])):
            image['file_name'] = f'{name}/000{Path(image["file_name"]).suffix}'
        file.write_text(json.dumps(coco))
    options = [str(part).replace(str(at), str(root)) for part in options]
    args = [config, checkpoint, '--work-dir', tmp_path, option, tmp_path / 'out', *options]
    assert 'share their names' in tool_error(capsys, 'test', *args)


@pytest.mark.parametrize('config', [RETINANET, SEM_FPN], ids=lambda path: path.stem)
def test_tta(config, trained, tmp_path):
    options, _, checkpoint = trained(config)
    if config == SEM_FPN:
        scales = [f'tta_pipeline.1.transforms.0.{i}.scale=(128,64)' for i in range(6)]
        options = [*options, *scales]
    run_tool('test', config, checkpoint, '--work-dir', tmp_path, '--tta', *options)
    metrics = json.loads((tmp_path / 'test_metrics.json').read_text())
    assert METRICS[config] <= set(metrics)


def test_flips_leave_the_true_boxes(digits_root):
    """The metrics that read them from the data set get them from the first view."""
    path = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py'
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    spec = importlib.util.spec_from_file_location('tool', ROOT / 'tools' / 'test.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    dataset = dict(cfg.test_dataloader.dataset, data_root=f'{digits_root}/')
    expected = DATASETS.build(dataset)[0]
    cfg.test_dataloader.dataset.pipeline.insert(2, dict(type='Pad', size=(400, 400)))
    tool.enable_tta(cfg)
    views = DATASETS.build(dict(dataset, pipeline=cfg.tta_pipeline))[0]
    boxes = expected['data_samples'].gt_instances.bboxes
    for image, sample in zip(views['inputs'], views['data_samples'], strict=True):
        torch.testing.assert_close(sample.gt_instances.bboxes.tensor, boxes.tensor)
        height, width = expected['inputs'].shape[-2:]
        image = image[..., :height, :width]  # without the padding, which is behind the flip
        torch.testing.assert_close(image.flip(-1) if sample.flip else image, expected['inputs'])
    assert [sample.flip for sample in views['data_samples']] == [True, False]


def test_tta_refuses_masks(trained, tmp_path, capsys):
    options, _, checkpoint = trained(MASK_RCNN)
    args = [MASK_RCNN, checkpoint, '--work-dir', tmp_path, '--tta', *options]
    assert 'boxes only' in tool_error(capsys, 'test', *args)


@pytest.mark.parametrize('by_path', [True, False], ids=['path', 'auto'])
def test_resume(by_path, trained, ade_root, tmp_path):
    options, _, checkpoint = trained(SEM_FPN)
    if by_path:
        resume = ['--resume', checkpoint]
    else:
        (tmp_path / checkpoint.name).write_bytes(checkpoint.read_bytes())
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / checkpoint.name))
        resume = ['--resume']
    longer = ['train_cfg.max_iters=3', 'train_cfg.val_interval=3']
    run_tool('train', SEM_FPN, '--work-dir', tmp_path, *resume, *options, *longer)
    assert (tmp_path / 'iter_3.pth').is_file()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'resumed epoch' in log and 'iter: 2' in log


def test_auto_scale_lr(trained, tmp_path):
    options, *_ = trained(SEM_FPN)
    run_tool('train', SEM_FPN, '--work-dir', tmp_path, '--auto-scale-lr', *options)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'LR is set based on batch size of 32 and the current batch size is 2' in log


def test_auto_scale_lr_counts_accumulated_gradients(trained, tmp_path):
    options, *_ = trained(SEM_FPN)
    options = [*options, 'optim_wrapper.accumulative_counts=4']
    run_tool('train', SEM_FPN, '--work-dir', tmp_path, '--auto-scale-lr', *options)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'LR is set based on batch size of 8.0 and the current batch size is 2' in log


def test_auto_scale_lr_scales_the_least_rate(trained, tmp_path):
    options, *_ = trained(SEM_FPN)
    options = [*options, 'param_scheduler.0.eta_min=1e-5']
    run_tool('train', SEM_FPN, '--work-dir', tmp_path, '--auto-scale-lr', *options)
    state = torch.load(next(tmp_path.glob('*.pth')), weights_only=False)
    assert state['param_schedulers'][0]['eta_min'] == pytest.approx(1e-5 * 2 / 32)
    assert 'eta_min: 1e-05 → 6.25e-07' in next(tmp_path.glob('*/*.log')).read_text()


def test_default_work_dir(trained, monkeypatch, tmp_path):
    options, *_ = trained(SEM_FPN)
    monkeypatch.chdir(tmp_path)
    run_tool('train', SEM_FPN, *options)
    assert (tmp_path / 'work_dirs' / SEM_FPN.stem / 'val_metrics.json').is_file()


@pytest.mark.parametrize(
    'tool, args, words',
    [
        ('train', ['nowhere.py'], ['config not found: nowhere.py']),
        ('train', [CONFIGS / 'detection' / 'typo.py'], ['typo.py', RETINANET.name]),
        ('train', [RETINANET], ['data not found', 'instances_train2017.json', 'cocodataset.org']),
        ('train', [SEM_FPN], ['data not found', 'images/training', 'ADEChallengeData2016.zip']),
        ('train', [DIGITS[0]], ['data not found', 'make_digits_dataset.py data/digits']),
        ('test', [RETINANET, 'gone.pth'], ['checkpoint not found: gone.pth']),
        ('train', [RETINANET, '--resume', 'gone.pth'], ['checkpoint not found: gone.pth']),
        (
            'train',
            [RETINANET, '--cfg-options', 'model.backbone.init_cfg.checkpoint=gone.pth'],
            ['checkpoint not found: gone.pth', 'init_cfg'],
        ),
        (
            'train',
            [RETINANET, '--cfg-options', 'default_scope=mmyolo'],
            ['mmyolo', 'not installed'],
        ),
        (
            'train',
            [RETINANET, '--cfg-options', 'auto_scale_lr=None', '--auto-scale-lr'],
            ['--auto-scale-lr needs auto_scale_lr.base_batch_size'],
        ),
        (
            'test',
            [RETINANET, 'a.pth', '--show-dir', 'a', '--cfg-options', 'default_hooks=None'],
            ['--show-dir needs default_hooks.visualization'],
        ),
        ('train', [SEM_FPN, '--cfg-options', 'model.neck.type=mmyolo.FPN'], ['needs mmyolo']),
        (
            'train',
            [
                RETINANET,
                '--cfg-options',
                'model.neck.init_cfg.type=Pretrained',
                'model.neck.init_cfg.checkpoint=file:///gone.pth',
            ],
            ['checkpoint not found: /gone.pth'],
        ),
        ('test', [RETINANET, ROOT / 'LICENSE', '--out', 'a.json'], ['a.json', '.pkl']),
        ('train', [RETINANET, '--launcher', 'horovod'], ['horovod', 'pytorch', 'slurm']),
    ],
    ids=str,
)
def test_errors_are_one_message(tool, args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = tool_error(capsys, tool, *args)
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu_is_refused(capsys):
    assert '--amp needs a GPU' in tool_error(capsys, 'train', RETINANET, '--amp')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_config_with_amp_trains_in_float32_without_a_gpu(digits_root, tmp_path, capsys):
    config = write_tiny_config(tmp_path, 'by_iteration', digits_root, iters=2)
    with config.open('a') as file:
        file.write(
            "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')"
        )
    run_tool('train', config, '--work-dir', tmp_path / 'run')
    assert 'warning: no CUDA GPU: trains in float32' in capsys.readouterr().err
    left = Config.fromfile(tmp_path / 'run' / 'config.py').optim_wrapper
    assert left.type == 'OptimWrapper' and not {'loss_scale', 'dtype'} & set(left)


def test_a_stale_last_checkpoint_is_named(trained, tmp_path, capsys):
    options, *_ = trained(SEM_FPN)
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_8.pth')
    args = [SEM_FPN, '--work-dir', tmp_path, '--resume', *options]
    message = tool_error(capsys, 'train', *args)
    assert '/gone/iter_8.pth' in message and 'last_checkpoint' in message


@pytest.mark.parametrize(
    'options, missing',
    [
        (
            ['train_dataloader.dataset.ann_file=a.json,b.json'],
            ['data/coco/a.json', 'data/coco/b.json'],
        ),
        (['train_dataloader.dataset.data_root=/gone'], ['/gone/train2017']),
        (['val_dataloader.dataset.data_root=file:///gone'], ['/gone/val2017']),
    ],
    ids=str,
)
def test_all_missing_data_is_listed(options, missing, capsys):
    message = tool_error(
        capsys, 'train', RETINANET, '--cfg-options', *options, 'model.backbone.init_cfg=None'
    )
    assert all(path in message for path in missing), message


def test_remote_data_is_not_looked_for_on_disk():
    dataset = dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file='a.json',
        pipeline=[],
        backend_args=dict(backend='petrel', path_mapping={'data/': 's3://bucket/'}),
    )
    assert not list(checks._data_paths(dict(type='RepeatDataset', dataset=dataset)))


@pytest.mark.parametrize(
    'text, word',
    [
        ('model = dict(', 'SyntaxError'),
        ("_base_ = './gone.py'", 'gone.py'),
        ('a = 1', 'model'),
        ("custom_imports = dict(imports=['no_such_package'])", 'no_such_package'),
    ],
)
def test_broken_config(text, word, capsys, tmp_path):
    config = tmp_path / 'broken.py'
    config.write_text(text)
    message = tool_error(capsys, 'train', config)
    assert word in message and 'broken.py' in message


@pytest.mark.parametrize(
    'option, words',
    [
        ('model.backbone.arch=s13', ["arch='s13' is unknown", 's12', 'm48']),
        ('model.backbone.out_indices=(0,4)', ['(0, 4)', '0 to 3']),
        ('model.backbone.type=PoolFromer', ['PoolFromer']),
    ],
)
def test_a_config_that_cannot_be_built(option, words, trained, tmp_path, capsys):
    options, *_ = trained(SEM_FPN)
    message = tool_error(capsys, 'train', SEM_FPN, '--work-dir', tmp_path, *options, option)
    assert message.startswith('error: the config cannot be built')
    assert all(word in message for word in words), message


def test_options_that_replace_a_part_are_refused(capsys):
    args = 'train', SEM_FPN, '--cfg-options'
    assert 'entries' in tool_error(capsys, *args, 'train_dataloader=3')
    assert 'name one of them' in tool_error(capsys, *args, 'train_dataloader.dataset=a')


def test_a_text_that_the_copy_of_the_config_would_replace_is_refused(capsys):
    args = 'train', SEM_FPN, '--cfg-options', 'work_dir={{$A:b}}'
    assert 'double braces' in tool_error(capsys, *args)


@pytest.mark.parametrize('option', ['foo', 'model.a=[1,2'])
def test_options_that_are_none_are_usage_errors(option, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool('train', SEM_FPN, '--cfg-options', option)
    assert stop.value.code == 2 and 'write KEY=VALUE' in capsys.readouterr().err


@pytest.mark.parametrize(
    'tool, args',
    [
        ('train', ['x' * 300]),
        ('test', [RETINANET, 'x' * 300]),
        ('predict', [RETINANET, 'a.pth', 'x' * 300]),
        ('use_dataset', [RETINANET, '--images', 'x' * 300, '--annotations', 'a']),
        ('use_dataset', [RETINANET, '--images', '~nobody-x/a', '--annotations', 'a']),
        ('check_dataset', [RETINANET, '--workers', -1]),
        ('check_dataset', [RETINANET, '--out', '/nonexistent/x']),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_names_and_numbers_that_are_none(tool, args, capsys):
    message = tool_error(capsys, tool, *args)
    assert message.startswith('error: ')


def test_an_evaluation_that_never_comes_is_refused(trained, tmp_path, capsys):
    options, *_ = trained(SEM_FPN)
    args = [SEM_FPN, '--work-dir', tmp_path, *options, 'train_cfg.val_begin=100']
    assert 'nothing would be evaluated' in tool_error(capsys, 'train', *args)


@pytest.mark.parametrize(
    'option, meant',
    [
        ('model.backbone.drop_path=0.1', 'drop_path_rate'),
        ('model.backbone.depth=12', 'arch'),
        ('train_dataloader.batchsize=4', 'train_dataloader.batch_size'),
        ('optim_wraper.optimizer.lr=0.1', 'optim_wrapper'),
        ('lr=0.1', 'optim_wrapper.optimizer.lr'),
        ('max_iters=3', 'train_cfg.max_iters'),
        ('data_root=/data', 'train_dataloader.dataset'),
        ('train_pipeline=[]', 'train_dataloader.dataset'),
        ('crop_size=(64,64)', 'train_dataloader.dataset.dataset.pipeline.3.crop_size'),
        (
            'train_pipeline.3.crop_size=(64,64)',
            'train_dataloader.dataset.dataset.pipeline.3.crop_size',
        ),
        ('data_root.x=1', 'train_dataloader.dataset.dataset.data_root.x'),
        ('optimizer.lr=0.1', 'optim_wrapper.optimizer.lr'),
        ('data_preprocessor.mean=[0,0,0]', 'model.data_preprocessor.mean'),
        ('model.decode_head.chanels=64', 'model.decode_head.channels'),
        ('train_dataloader.dataset.dataset.pipeline.2.scal=(64,64)', '2.scale'),
    ],
)
def test_misspelt_options_are_named_with_what_was_meant(option, meant, capsys):
    message = tool_error(capsys, 'train', SEM_FPN, '--cfg-options', option)
    assert option.split('=')[0].split('.')[-1] in message and meant in message


def test_a_name_that_own_code_may_read_is_said(capsys):
    with pytest.raises(SystemExit, match='data not found'):
        run_tool('train', SEM_FPN, '--cfg-options', 'dataset_type=COCO')
    assert 'dataset_type: mmengine, the toolboxes' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='data not found'):
        run_tool('train', SEM_FPN, '--cfg-options', 'evaluation.interval=1')
    assert 'evaluation.interval: mmengine, the toolboxes' in capsys.readouterr().err


def test_options_like_no_other_are_additions(capsys):
    options = ['--cfg-options', 'model.backbone.with_cp=True', 'note=a']
    options += ['default_hooks.checkpoint.save_bset=auto', 'model.backbone.drop_path_rate=0.1']
    assert 'data not found' in tool_error(capsys, 'train', SEM_FPN, *options)


def test_a_missing_toolbox_is_named():
    code = (
        "import sys, runpy; sys.modules['mmdet'] = None; "
        f"sys.argv = ['train.py', {str(RETINANET)!r}]; "
        f"runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')"
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert 'needs mmdet, which is not installed: pip install' in run.stderr


def test_a_failed_download_is_named(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'cache'))
    options, *_ = trained(SEM_FPN)
    url = 'http://localhost:9/poolformer_s12.pth.tar'  # nothing listens there
    options = [option for option in options if 'init_cfg' not in option]
    options.append(f'model.backbone.init_cfg.checkpoint={url}')
    args = [SEM_FPN, '--work-dir', tmp_path / 'work', *options]
    message = tool_error(capsys, 'train', *args)
    assert f'{url} cannot be downloaded' in message and 'give its path' in message


@pytest.mark.parametrize('tool', ['train', 'test', 'make_digits_dataset'])
def test_help(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(tool, '--help')
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith('usage:')
    assert '--gpus' not in text, 'mim would pass --device, which is no option here'
