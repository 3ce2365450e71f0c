"""The digits data set: layout, labels, no leak from train to val, same seed same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import load_tool, run_tool, tool_error
from PIL import Image
from pycocotools.coco import COCO

SPLITS = {'training': 4, 'validation': 2}


def all_bytes(root: Path):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}


@pytest.mark.parametrize('split', SPLITS)
def test_layout(digits_root, split):
    names = {p.stem for p in (digits_root / 'images' / split).glob('*.jpg')}
    assert len(names) == SPLITS[split]
    assert names == {p.stem for p in (digits_root / 'annotations' / split).glob('*.png')}


@pytest.mark.parametrize('split', SPLITS)
def test_boxes_masks_and_label_maps_agree(digits_root, split):
    coco = COCO(digits_root / 'annotations' / f'instances_{split}.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list('0123456789')
    for image in coco.loadImgs(coco.getImgIds()):
        path = digits_root / 'annotations' / split / f'{Path(image["file_name"]).stem}.png'
        labels = np.array(Image.open(path))
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert 1 <= len(annotations) <= 4
        masks = np.stack([coco.annToMask(annotation) for annotation in annotations])
        assert masks.sum(0).max() == 1
        np.testing.assert_array_equal(masks.any(0), labels == 7)
        assert set(np.unique(labels)) <= set(range(1, 8))
        assert 2 <= len(set(np.unique(labels)) - {7}) <= 4
        for annotation, mask in zip(annotations, masks):
            rows, columns = np.where(mask)
            x, y = columns.min(), rows.min()
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation['bbox'] == [x, y, *size] and annotation['area'] == mask.sum()


def test_same_seed_same_bytes(digits_root, tmp_path):
    args = ['--train', 4, '--val', 2, '--size', 64, '--digits', 1, 4]
    run_tool('make_digits_dataset', tmp_path / 'again', *args)
    run_tool('make_digits_dataset', tmp_path / 'other', *args, '--seed', 1)
    assert all_bytes(tmp_path / 'again') == all_bytes(digits_root)
    assert all_bytes(tmp_path / 'other') != all_bytes(digits_root)


def test_the_number_of_digits_in_an_image(tmp_path):
    counts = '--train', 6, '--val', 1, '--digits', 2, 3
    run_tool('make_digits_dataset', tmp_path / 'd', *counts)
    content = (tmp_path / 'd' / 'annotations' / 'instances_training.json').read_text()
    images = [annotation['image_id'] for annotation in json.loads(content)['annotations']]
    assert {images.count(image) for image in range(6)} == {2, 3}


def test_splits_share_neither_digits_nor_texture_areas():

    tool = load_tool('make_digits_dataset')
    samples = {s: {i.tobytes() for _, i in tool['digit_samples'](s)} for s in SPLITS}
    assert not samples['training'] & samples['validation']
    for load in tool['TEXTURES'].values():
        left, right = (tool['texture_area'](load(), split) for split in SPLITS)
        assert left.shape[1] + right.shape[1] == load().shape[1]


@pytest.mark.parametrize(
    'args, words',
    [
        (['--train', 0], ['--train 0', 'at least 1']),
        (['--size', 32], ['--size 32', 'at least 64']),
        (['--seed', -1], ['--seed -1', 'at least 0']),
        (['--digits', 4, 3], ['--digits 4 3', 'lesser number first']),
    ],
    ids=str,
)
def test_bad_arguments(args, words, tmp_path, capsys):
    message = tool_error(capsys, 'make_digits_dataset', tmp_path / 'out', *args)
    assert all(word in message for word in words)
    assert not (tmp_path / 'out').exists()


def test_existing_folder_is_left_alone(tmp_path, capsys):
    message = tool_error(capsys, 'make_digits_dataset', tmp_path)
    assert f'{tmp_path} exists already' in message
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_behind_when_writing_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('cv2.imwrite', lambda *args: False)
    message = tool_error(capsys, 'make_digits_dataset', tmp_path / 'out', '--train', 1)
    assert str(tmp_path / 'out') in message
    assert not list(tmp_path.iterdir())


def test_the_manifest_is_plain_json(digits_root):
    coco = json.loads((digits_root / 'annotations' / 'instances_training.json').read_text())
    assert set(coco) == {'images', 'annotations', 'categories'}
