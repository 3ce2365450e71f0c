"""What several test files share: paths, tiny configs, and the scripts run in this process."""

import multiprocessing
import os
import re
import runpy
import socket
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer
from PIL import Image
from torch import nn

from mmpoolformer import (
    METAFORMERS,
    MetaFormer,
)
from mmpoolformer.exporting.extras import OLDEST_TORCH

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
METHODS = ('retinanet', 'mask-rcnn', 'sem-fpn')  # of the papers
RECIPES = sorted(p for p in CONFIGS.glob('*/*.py') if not p.name.startswith(METHODS))
ALL_CONFIGS = sorted(path for path in CONFIGS.glob('*/*.py') if path not in RECIPES)
FAMILY = [path for path in ALL_CONFIGS if 'poolformer' not in path.name]
DIGITS = [path for path in ALL_CONFIGS if 'digits' in path.name]
PUBLISHED = [path for path in ALL_CONFIGS if path not in FAMILY + DIGITS]

TINY = dict(layers=(1, 2, 1, 1), embed_dims=(8, 16, 24, 32))
TINY_HEADS = dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))  # the heads of attention fit

KINDS = ['poolformerv2_s12', 'caformer_s18', 'metaformer_ppaa_s12']  # of norms, scales and mixers

TINY_CONFIG = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch=dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32)),
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=dict(_delete_=True, type='BN')),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(48, 48)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root={root!r}, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root={root!r})
)
test_dataloader = val_dataloader
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
custom_imports = dict(imports=['mmpoolformer'])
"""
TINY_BY_ITERATION = """
train_cfg = dict(max_iters={iters}, val_interval=4)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=3, max_keep_ckpts=2, save_best='mIoU')
)
"""
TINY_BY_EPOCH = """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs={iters} // 2, val_interval=2)
train_dataloader.update(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1)]
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2, save_best='mIoU'),
)
"""
TINY_LOOPS = {
    'by_iteration': TINY_BY_ITERATION,
    'by_epoch': TINY_BY_EPOCH,
}  # the data set gives two per epoch


# Dynamo of torch 2.1 breaks the graph at what later versions trace.
needs_whole_graphs = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4 or later'
)


def require_export(*more):
    """Skip a file of tests where torch or a package cannot export whole models."""
    version = tuple(map(int, torch.__version__.split('+')[0].split('.')[:2]))
    if version < OLDEST_TORCH:
        pytest.skip(f'torch {OLDEST_TORCH} or later exports them', allow_module_level=True)
    for package in ('onnx', 'onnxruntime', 'onnxscript', 'openvino', 'nncf', *more):
        pytest.importorskip(package, reason='tests of the extra «export»')


def timm_to_official(key):
    """The official name of a tensor of timm's PoolFormer, written down apart from the package."""
    for pattern, replacement in (
        (r'^stem\.conv', 'patch_embed.proj'),
        (r'^stages\.(\d)\.downsample\.conv', lambda m: f'network.{2 * int(m[1]) - 1}.proj'),
        (r'^stages\.(\d)\.blocks\.', lambda m: f'network.{2 * int(m[1])}.'),
        (r'layer_scale(\d)\.scale', r'layer_scale_\1'),
        (r'^head\.norm', 'norm'),
        (r'^head\.fc', 'head'),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def shell_commands(text):
    """The commands in a page's blocks of shell, those over several lines in one."""
    blocks = re.findall(r'```shell\n(.*?)```', text, flags=re.S)
    return [line for block in blocks for line in block.replace('\\\n', '').splitlines() if line]


def save_noise(path, width, height, rng):
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def find_script(name):
    """The file of a script, by its name alone."""
    folders = ('tools', 'benchmarks', 'dev')
    (path,) = (path for folder in folders for path in (ROOT / folder).glob(f'{name}.py'))
    return path


def load_tool(name, run_name=None):
    """The names that a script defines; like Python, with its folder on the path."""
    path = find_script(name)
    sys.path.insert(0, str(path.parent))
    try:
        return runpy.run_path(str(path), run_name=run_name)
    finally:
        sys.path.remove(str(path.parent))


def run_tool(name, *args):
    """Run a script in this process, as the command line would."""
    argv, sys.argv = sys.argv, [f'{name}.py', *map(str, args)]
    local_rank, loggers = os.environ.pop('LOCAL_RANK', None), set(MMLogger._instance_dict)
    try:
        load_tool(name, run_name='__main__')
    finally:
        sys.argv = argv
        forget_visualizers(Visualizer)
        # Two runs within a second have one name, and would write into the first one's file.
        for name in MMLogger._instance_dict.keys() - loggers:
            del MMLogger._instance_dict[name]
        os.environ.pop('LOCAL_RANK', None)
        if local_rank is not None:
            os.environ['LOCAL_RANK'] = local_rank


def forget_visualizers(kind):
    """mmengine keeps one for each name and process, with the folder of the first run."""
    kind._instance_dict.clear()
    for each in kind.__subclasses__():
        forget_visualizers(each)


def start_tool(name, *args, log, env):
    """Start a script in a process forked from this one, where the toolboxes are imported already.

    What it prints goes into the file ``log``.
    """
    process = multiprocessing.get_context('fork').Process(
        target=run_forked, args=(log, env, run_tool, name, *args)
    )
    process.start()
    return process


def run_forked(log, env, function, *args):
    """End this forked process with what a function does; what it prints goes into a file."""
    code = 1
    with open(log, 'w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        try:
            os.environ.update(env)
            function(*args)
            code = 0
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
            print(stop.code)
        except BaseException:
            traceback.print_exc()
    os._exit(code)  # not the parent's clean-up


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def tool_error(capsys, name, *args):
    """Run a script that must refuse its input; return its message, one without a stack trace."""
    with pytest.raises(SystemExit) as stop:
        run_tool(name, *args)
    assert stop.value.code not in (0, None)
    message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert 'Traceback' not in message
    return message


def train_options(config, data_root):
    """``--cfg-options`` that make two cheap iterations and an evaluation of any config here."""
    options = {'model.backbone.init_cfg': None}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
        options[f'{split}_dataloader.batch_size'] = 2 if split == 'train' else 1
        dataset = f'{split}_dataloader.dataset'
        if split == 'train' and 'sem-fpn' in config.name and 'digits' not in config.name:
            dataset += '.dataset'
        options[f'{dataset}.data_root'] = f'{data_root}/'
    if config.parent.name == 'segmentation':
        options['train_cfg.max_iters'] = options['train_cfg.val_interval'] = 2
        options['model.data_preprocessor.size'] = '(64,64)'
        if 'digits' not in config.name:
            options['train_dataloader.dataset.dataset.pipeline.2.scale'] = '(128,64)'
            options['train_dataloader.dataset.dataset.pipeline.3.crop_size'] = '(64,64)'
            options['val_dataloader.dataset.pipeline.1.scale'] = '(128,64)'
            options['test_dataloader.dataset.pipeline.1.scale'] = '(128,64)'
    else:
        annotations = 'instances_validation' if 'digits' in config.name else 'instances_val2017'
        for split in ('val', 'test'):
            options[f'{split}_evaluator.ann_file'] = f'{data_root}/annotations/{annotations}.json'
        # An undertrained detector has no box above the usual threshold.
        rcnn = 'rcnn.' if 'mask-rcnn' in config.name else ''
        # Two moments of 44 million parameters, brought to disk: no detector is resumed here.
        options['default_hooks.checkpoint.save_optimizer'] = False
        options[f'model.test_cfg.{rcnn}score_thr'] = 0.0
        options[f'model.test_cfg.{rcnn}max_per_img'] = 10
        if 'digits' in config.name:
            options['train_cfg.max_iters'] = options['train_cfg.val_interval'] = 2
        else:
            options['train_cfg.max_epochs'] = 1
            options['train_dataloader.dataset.pipeline.2.scale'] = '(96,96)'
            options['val_dataloader.dataset.pipeline.1.scale'] = '(96,96)'
            options['test_dataloader.dataset.pipeline.1.scale'] = '(96,96)'
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def write_tiny_config(folder, loop, root, iters=8):
    """Write a config of a segmentor of a few channels on a small digits data set."""
    base = str(CONFIGS / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py')
    path = folder / 'tiny.py'
    path.write_text(
        TINY_CONFIG.format(base=base, root=f'{root}/') + TINY_LOOPS[loop].format(iters=iters)
    )
    return path


def random_weights(model, matrices=0.05, layer_scale=0.1):
    """Weights with which every part matters, unlike LayerScale at 1e-5; deep models stay finite."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        scale = layer_scale if 'layer_scale' in name else 1.0
        parameter.data = scale * (1 + 0.1 * noise) if parameter.ndim == 1 else matrices * noise
    return model.eval()


def without_out_norms(model):
    """timm has no output norms for dense prediction."""
    for i in model.out_indices:
        setattr(model, f'norm{2 * i}', nn.Identity())
    return model.eval()


def assert_same_features(own, reference, size):
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        features = without_out_norms(own)(image)
        expected = reference.forward_intermediates(image, intermediates_only=True)
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


class Depthwise(nn.Module):
    """A token mixer of a user's own, with parameters and a count of its own."""

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x):
        return self.norm(self.conv(x))


def tiny_metaformer(name, **options):
    return MetaFormer(dict(METAFORMERS[name]._asdict(), **TINY_HEADS), **options)
