"""``tools/get_flops.py`` on backbones, detectors and segmentors."""

import pytest
from helpers import CONFIGS, run_tool, tool_error

RETINANET = 'retinanet_poolformer-s12_fpn_1x_coco'
MASK_RCNN = 'mask-rcnn_poolformer-s12_fpn_1x_coco'
SEM_FPN = 'sem-fpn_poolformer-s12_8xb4-40k_ade20k-512x512'


def rows(text):
    """The numbers of the table, by part."""
    cells = [line.replace('┃', '│').split('│') for line in text.splitlines()]
    return {row[1].strip(): [cell.strip() for cell in row[2:4]] for row in cells if len(row) == 5}


def test_backbone_alone_has_the_published_macs(capsys):
    run_tool('get_flops', RETINANET, '--backbone-only', '--shape', 224)
    out = capsys.readouterr().out
    assert rows(out)['whole'] == ['11.403 M', '1.812 G']
    assert '224×224' in out and 'MiB of weights' in out


@pytest.mark.parametrize('config', [RETINANET, MASK_RCNN, SEM_FPN])
def test_whole_models_are_counted(config, capsys):
    few = ['--cfg-options', 'model.test_cfg.rpn.max_per_img=20'] if config == MASK_RCNN else []
    run_tool('get_flops', config, '--shape', 96, 160, *few)
    out = capsys.readouterr().out
    table = rows(out)
    parts = [float(table[part][1].split()[0]) for part in ('backbone', 'neck', 'heads', 'whole')]
    assert min(parts) > 0 and sum(parts[:3]) == pytest.approx(parts[3], abs=0.002)
    assert 'only the backbone' not in out
    assert ('RoIAlign' in out) == (config == MASK_RCNN)


def test_images_are_padded_as_the_config_pads_them(capsys):
    run_tool('get_flops', RETINANET, '--shape', 100, 150)
    assert '128×160' in capsys.readouterr().out


def test_the_size_of_the_config_is_the_default(tmp_path, capsys):
    options = ['--cfg-options', 'model.data_preprocessor.size=(64,96)']
    run_tool('get_flops', SEM_FPN, *options)
    assert '64×96' in capsys.readouterr().out


def test_attention_over_queries_is_counted(capsys):
    run_tool('get_flops', 'mmdet::detr_r50_8xb2-150e_coco.py', '--shape', 128)
    out = capsys.readouterr().out
    assert float(rows(out)['heads'][1].split()[0]) > 0 and 'only the backbone' not in out


def test_heads_that_do_not_take_the_image_are_left_out(capsys):
    run_tool('get_flops', 'mmdet::dino-4scale_r50_8xb2-12e_coco.py', '--shape', 128)
    out = capsys.readouterr().out
    assert rows(out)['heads'][1] == '–' and 'only the backbone' in out


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([RETINANET, '--shape', '16', '--backbone-only'], ['16×16', 'at least 32']),
        ([RETINANET, '--shape', '0'], ['--shape', 'height and width']),
        ([RETINANET, '--shape', '1', '2', '3'], ['--shape', 'height and width']),
        ([RETINANET, '--cfg-options', 'model.backbone.arch=s13'], ['s13', 's12']),
        ([CONFIGS / 'detection' / '_base_' / 'schedule_1x.py'], ["no 'model'"]),
    ],
    ids=str,
)
def test_what_cannot_be_counted_is_one_message(arguments, words, capsys):
    message = tool_error(capsys, 'get_flops', *arguments)
    assert all(word in message for word in words), message
