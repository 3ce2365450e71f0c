"""Bad label maps: each is found, and what passes the check loads in mmseg."""

import os
import struct
import zlib

import numpy as np
import pytest
from bad_files import FUZZ, PNG, label_map, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mmpoolformer.datasets import ERROR, WARNING, check_pair
from mmpoolformer.datasets.label_maps import LabelsFit, labels_in
from mmpoolformer.utils.errors import DataError


def pair(folder, labels, reduce_zero_label=True):
    noise().save(folder / 'image.png')
    Image.fromarray(labels).save(folder / 'labels.png')
    return dict(
        img_path=str(folder / 'image.png'),
        seg_map_path=str(folder / 'labels.png'),
        reduce_zero_label=reduce_zero_label,
        label_map=None,
    )


@pytest.mark.parametrize(
    'labels, reduce_zero_label, level, kind',
    [
        (label_map(0, 1, 4), True, ERROR, 'labels beyond the classes'),
        (label_map(0, 3), False, ERROR, 'labels beyond the classes'),
        (label_map(0, 1, shape=(20, 40)), True, ERROR, 'label map of another size'),
        (np.zeros((30, 40, 3), np.uint8), True, ERROR, 'label map in colour'),
        (label_map(0, 255), True, WARNING, 'label map without a class'),
    ],
)
def test_bad_label_map(labels, reduce_zero_label, level, kind, tmp_path):
    (problem,) = check_pair(pair(tmp_path, labels, reduce_zero_label), num_classes=3)
    assert (problem.level, problem.kind) == (level, kind)


@pytest.mark.parametrize(
    'labels, reduce_zero_label', [(label_map(0, 1, 2, 3, 255), True), (label_map(0, 1, 2), False)]
)
def test_good_label_map(labels, reduce_zero_label, tmp_path):
    assert check_pair(pair(tmp_path, labels, reduce_zero_label), num_classes=3) == []


def test_a_label_map_in_jpeg(tmp_path):
    info = pair(tmp_path, label_map(0, 1, 2), reduce_zero_label=False)
    Image.open(info['seg_map_path']).save(info['seg_map_path'], 'JPEG')
    (problem,) = check_pair(info, num_classes=3)
    assert problem.kind == 'label map stored as JPEG' and 'PNG' in problem.detail


def test_label_map_of_chosen_classes_is_applied_as_mmseg_does(tmp_path):
    info = pair(tmp_path, label_map(0, 1, 2, 3))
    info['label_map'] = {0: 255, 1: 0, 2: 1}  # after the zero label is gone
    assert check_pair(info, num_classes=2) == []


@pytest.mark.parametrize('content', [None, b'', b'no image', PNG[:60]])
def test_unreadable_label_map(content, tmp_path):
    info = pair(tmp_path, label_map(1))
    (tmp_path / 'labels.png').unlink()
    if content is not None:
        (tmp_path / 'labels.png').write_bytes(content)
    (problem,) = check_pair(info, num_classes=3)
    assert (problem.level, problem.kind) == (ERROR, 'label map cannot be read')


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(['L', 'P', 'RGB', '1']),
)
@settings(FUZZ, max_examples=200)
def test_labels_that_pass_are_classes_for_mmseg(tmp_path_factory, values, reduce_zero, mode):
    transforms = pytest.importorskip('mmseg.datasets.transforms')
    folder = tmp_path_factory.getbasetemp()
    info = pair(folder, label_map(*values), reduce_zero)
    Image.open(info['seg_map_path']).convert(mode).save(info['seg_map_path'])
    if any(problem.level == ERROR for problem in check_pair(info, num_classes=3)):
        return
    labels = transforms.LoadAnnotations()(dict(info, seg_fields=[]))['gt_seg_map']
    assert labels.shape == (30, 40) and set(np.unique(labels)) <= {0, 1, 2, 255}


@pytest.mark.parametrize(
    'labels, word', [([[0, 2]], None), ([[0, 255]], None), ([[0, 3]], 'label 3')]
)
def test_label_maps_are_watched_while_they_are_loaded(labels, word):
    results = dict(gt_seg_map=np.array(labels), seg_map_path='a.png', ori_shape=(1, 2))
    if word is None:
        assert LabelsFit(3, 255)(results) is results
        return
    with pytest.raises(DataError, match=rf'a\.png has {word} as read; the 3 classes are 0 to 2'):
        LabelsFit(3, 255)(results)


@pytest.mark.parametrize(
    'value, word', [(255, None), (256, 'label 256'), (1000, 'reads up to 255')]
)
def test_label_maps_of_16_bits_are_not_cut(value, word, tmp_path):
    """mmseg makes bytes of them: 256 would be class 0."""
    labels = np.zeros((4, 4), np.uint16)
    labels[0, 0] = value
    Image.fromarray(labels).save(tmp_path / 'a.png')
    assert labels_in(tmp_path / 'a.png') == {0, value}
    loaded = labels.astype(np.uint8)
    results = dict(gt_seg_map=loaded, seg_map_path=str(tmp_path / 'a.png'), ori_shape=(4, 4))
    if word is None:
        assert LabelsFit(1, 255)(results) is results
        return
    with pytest.raises(DataError, match=word):
        LabelsFit(1, 255)(results)


def test_labels_of_16_bits_are_checked_as_others(tmp_path):
    labels = np.full((4, 4), 7, np.uint16)
    Image.fromarray(labels).save(tmp_path / 'a.png')
    loaded = labels.astype(np.uint8)
    results = dict(gt_seg_map=loaded, seg_map_path=str(tmp_path / 'a.png'), ori_shape=(4, 4))
    with pytest.raises(DataError, match='label 7 as read; the 3 classes'):
        LabelsFit(3, 255)(results)


def test_labels_below_zero_are_none(tmp_path):
    labels = np.full((30, 40), -32768, np.int32)
    Image.fromarray(labels).save(tmp_path / 'labels.tif')
    info = dict(pair(tmp_path, np.zeros((30, 40), np.uint8)), seg_map_path=tmp_path / 'labels.tif')
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and 'label -32768, below 0' in problem.detail
    loaded = labels.astype(np.uint8)
    results = dict(gt_seg_map=loaded, seg_map_path=info['seg_map_path'], ori_shape=(30, 40))
    with pytest.raises(DataError, match='below 0'):
        LabelsFit(3, 255)(results)


def test_a_label_map_that_asks_to_be_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    info = pair(tmp_path, np.zeros((30, 40), np.uint8))
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(info['seg_map_path'], exif=exif)
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and 'asks to turn it' in problem.detail


def test_label_maps_of_fractions_are_none(tmp_path):
    Image.fromarray(np.full((30, 40), 0.9, np.float32)).save(tmp_path / 'labels.tif')
    info = dict(pair(tmp_path, np.zeros((30, 40), np.uint8)), seg_map_path=tmp_path / 'labels.tif')
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and 'classes are whole ones' in problem.detail


@pytest.mark.parametrize('bits', [2, 4])
def test_label_maps_of_few_greys_are_spread(bits, tmp_path):
    def chunk(name, content):
        checksum = struct.pack('>I', zlib.crc32(name + content))
        return struct.pack('>I', len(content)) + name + content + checksum

    header = struct.pack('>IIBBBBB', 40, 30, bits, 0, 0, 0, 0)
    rows = zlib.compress((1 + 40 * bits // 8) * 30 * b'\0')
    content = chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    (tmp_path / 'few.png').write_bytes(b'\x89PNG\r\n\x1a\n' + content)
    info = dict(pair(tmp_path, np.zeros((30, 40), np.uint8)), seg_map_path=tmp_path / 'few.png')
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and 'spread over 0 to 255' in problem.detail


@pytest.mark.parametrize(
    ('mode', 'tags', 'word'),
    [('1', {262: 0}, 'upside down'), ('L', {262: 0}, 'upside down'), ('L', {258: 4}, 'spread')],
)
def test_greys_of_tiff_that_are_other_numbers(mode, tags, word, tmp_path, monkeypatch):
    Image.new(mode, (40, 30)).save(tmp_path / 'labels.tif', tiffinfo={262: tags.get(262, 1)})
    content = (tmp_path / 'labels.tif').read_bytes()
    for tag, value in tags.items():  # in the directory: tag, type SHORT, one value
        entry = struct.pack('<HHI', tag, 3, 1)
        start = content.index(entry) + len(entry)
        content = content[:start] + struct.pack('<H', value) + content[start + 2 :]
    (tmp_path / 'labels.tif').write_bytes(content)
    info = dict(pair(tmp_path, np.zeros((30, 40), np.uint8)), seg_map_path=tmp_path / 'labels.tif')
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and word in problem.detail


def test_a_label_map_that_never_ends(tmp_path):
    info = dict(pair(tmp_path, np.zeros((30, 40), np.uint8)), seg_map_path=tmp_path / 'pipe.png')
    os.mkfifo(info['seg_map_path'])
    (problem,) = check_pair(info, 3)
    assert problem.level == ERROR and 'no regular file' in problem.detail
