"""``tools/swap_backbone.py``, and ``train.py --swap-backbone``."""

import pytest
from helpers import CONFIGS, run_tool, tool_error, train_options
from mmengine.config import Config
from zoo_configs import CONVNEXT, MASK_RCNN, PSPNET, RETINANET, UPERNET, read

from mmpoolformer import swap_backbone, swap_changes
from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.utils.config_tree import walk

RETINANET_DIGITS = CONFIGS / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py'
HOURGLASS = 'mmdet::cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco.py'


def unscoped(cfg):
    """Without the mark that mmengine puts into what is inherited from another package."""
    cfg = cfg.to_dict()
    for _, node in walk(cfg):
        node.pop('_scope_', None)
    return cfg


@pytest.mark.parametrize('name', [RETINANET, CONVNEXT, PSPNET, UPERNET])
def test_tool_writes_the_config_that_the_function_returns(name, tmp_path, capsys):
    run_tool('swap_backbone', name, '--arch', 's24', '-o', tmp_path / 'new' / 'own.py')
    out = capsys.readouterr().out
    written = Config.fromfile(tmp_path / 'new' / 'own.py', import_custom_modules=False)
    assert unscoped(written) == swap_backbone(read(name), 's24').to_dict()
    assert "+        arch='s24'," in out  # the diff
    for change in swap_changes(read(name), 's24'):
        assert f'- {change}' in out
    assert list((tmp_path / 'new').iterdir()) == [tmp_path / 'new' / 'own.py']


@pytest.mark.parametrize('name', [RETINANET, 'path'])
def test_written_config_is_short_and_inherits(name, tmp_path):
    if name == 'path':
        name = tmp_path / 'before.py'
        read(MASK_RCNN).dump(name)
    run_tool('swap_backbone', name, '-o', tmp_path / 'own.py')
    text = (tmp_path / 'own.py').read_text()
    assert text.startswith(f"_base_ = '{getattr(name, 'name', name)}'")
    assert len(text.splitlines()) < 30


def test_a_config_of_a_toolbox_is_inherited_by_its_folder(tmp_path):
    run_tool('swap_backbone', 'mmdet::retinanet_r50_fpn_1x_coco', '-o', tmp_path / 'own.py')
    text = (tmp_path / 'own.py').read_text()
    assert text.startswith("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")


def test_written_config_keeps_the_optimizer_and_the_weights_asked_for(tmp_path):
    options = ('--keep-optimizer', '--checkpoint', 'none')
    run_tool('swap_backbone', RETINANET, *options, '-o', tmp_path / 'own.py')
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert unscoped(cfg)['optim_wrapper'] == read(RETINANET).optim_wrapper
    assert 'init_cfg' not in cfg.model.backbone


def test_without_out_the_changes_are_only_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_tool('swap_backbone', RETINANET)
    assert 'model.neck.in_channels' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['mmdet::retinanet/retinanet_r50_fpn_1x.py'], ['retinanet_r50_fpn_1x_coco.py']),
        (['mmpose::a/b.py'], ['mmpose', 'not installed']),
        (['no/such.py'], ['config not found', 'no/such.py']),
        ([RETINANET, '-o', 'own.yaml'], ['own.yaml', '.py']),
        ([HOURGLASS], ['stride 4', 'Start from mmdet::']),
    ],
)
def test_tool_refuses(arguments, words, capsys):
    message = tool_error(capsys, 'swap_backbone', *arguments)
    assert all(word in message for word in words), message


def test_tool_overwrites_only_when_told(tmp_path, capsys):
    (tmp_path / 'own.py').write_text('precious')
    message = tool_error(capsys, 'swap_backbone', RETINANET, '-o', tmp_path / 'own.py')
    assert '--overwrite' in message and (tmp_path / 'own.py').read_text() == 'precious'
    run_tool('swap_backbone', RETINANET, '-o', tmp_path / 'own.py', '--overwrite')
    assert 'PoolFormer' in (tmp_path / 'own.py').read_text()


def test_a_config_can_be_replaced_by_its_own_swap(tmp_path):
    read(MASK_RCNN).dump(tmp_path / 'own.py')
    run_tool('swap_backbone', tmp_path / 'own.py', '-o', tmp_path / 'own.py', '--overwrite')
    written = Config.fromfile(tmp_path / 'own.py')
    assert written.to_dict() == swap_backbone(read(MASK_RCNN)).to_dict()


def test_train_with_another_backbone_on_the_fly(coco_root, tmp_path):
    options = train_options(find_config(RETINANET), coco_root)
    run_tool('train', RETINANET, '--swap-backbone', 's12', '--work-dir', tmp_path, *options)
    trained = Config.fromfile(tmp_path / 'config.py')
    assert trained.model.backbone.type == 'PoolFormer'
    assert (tmp_path / 'epoch_1.pth').is_file() and (tmp_path / 'val_metrics.json').is_file()
    run_tool('test', tmp_path / 'config.py', tmp_path / 'epoch_1.pth', '--work-dir', tmp_path)
    assert (tmp_path / 'test_metrics.json').is_file()


def test_train_refuses_a_model_without_a_pyramid(capsys):
    message = tool_error(capsys, 'train', HOURGLASS, '--swap-backbone', 's12')
    assert 'stride 4' in message


def test_a_folder_whose_name_would_become_code(tmp_path, monkeypatch):
    """mmengine replaces what stands in double braces wherever it stands in a config file."""
    monkeypatch.chdir(tmp_path)
    name = 'y{{$NOPE:|\\\'+str(open("pwned","w"))#"}}'
    (tmp_path / name).mkdir()
    base = tmp_path / name / 'base.py'
    base.write_text(f'_base_ = {str(RETINANET_DIGITS)!r}\n')
    run_tool('swap_backbone', f'{name}/base.py', '--arch', 's24', '-o', 'new.py')
    assert Config.fromfile('new.py').model.backbone.arch == 's24'
    assert not (tmp_path / 'pwned').exists()
