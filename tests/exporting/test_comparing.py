"""Differences between predictions."""

import pytest
import torch
from mmengine.structures import InstanceData

from mmpoolformer.exporting.comparing import compare_detections, compare_tensors, largest


def detections(*rows):
    """Left, top, right, bottom, score and label of each."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return InstanceData(bboxes=table[:, :4], scores=table[:, 4], labels=table[:, 5].long())


NAN = float('nan')
FOUND = [(10, 10, 50, 50, 0.9, 1), (60, 20, 90, 80, 0.6, 2), (5, 5, 20, 20, 0.3, 0)]


def differences(ours, theirs, side=100):
    return dict(compare_detections(detections(*ours), detections(*theirs), side))


def test_the_order_of_detections_does_not_count():
    found = differences(FOUND[::-1], FOUND)
    assert found == dict(detections=0, boxes=0, scores=0)


def test_boxes_count_by_the_side_of_the_image():
    moved = [(12, 10, 50, 50, 0.9, 1), *FOUND[1:]]
    assert differences(moved, FOUND)['boxes'] == pytest.approx(0.02)


def test_scores_count_as_they_are():
    other = [(10, 10, 50, 50, 0.85, 1), *FOUND[1:]]
    assert differences(other, FOUND)['scores'] == pytest.approx(0.05)


@pytest.mark.parametrize('lost, size', [(0, 0.6), (2, 0.0)])
def test_what_is_lost_counts_by_its_score(lost, size):
    ours = [row for number, row in enumerate(FOUND) if number != lost]
    found = differences(ours, FOUND)
    assert found['scores'] == pytest.approx(size)
    assert found['detections'] == pytest.approx(1 / 3)


def test_another_class_is_no_counterpart():
    other = [(10, 10, 50, 50, 0.9, 3), *FOUND[1:]]
    assert differences(other, FOUND)['scores'] == pytest.approx(0.6)


def test_what_is_invented_counts_by_its_score():
    assert differences([(70, 70, 90, 90, 0.8, 1), *FOUND], FOUND)['scores'] == pytest.approx(0.5)


def test_what_is_lost_below_all_that_is_there_counts():
    theirs = [*FOUND, (40, 40, 60, 60, 0.5, 1)]
    assert differences(FOUND[:1], theirs)['scores'] == pytest.approx(0.3)


def test_another_only_detection_is_no_small_difference():
    assert differences([(60, 60, 90, 90, 0.9, 1)], FOUND[:1])['detections'] == 1


@pytest.mark.parametrize('ours, theirs', [(NAN, 1.0), (1.0, NAN), (NAN, NAN)])
def test_a_number_that_is_none_is_no_small_difference(ours, theirs):
    pairs = [torch.tensor([ours, 0.0])], [torch.tensor([theirs, 0.0])]
    found = compare_tensors(['a'], *pairs)
    assert largest(found) == [('a', float('inf'))]


@pytest.mark.parametrize('ours, theirs', [([], FOUND), (FOUND, []), ([], [])])
def test_nothing_found(ours, theirs):
    assert differences(ours, theirs)['detections'] == (0 if ours == theirs else len(ours) or 1)


def test_tensors_count_by_their_largest_value():
    pairs = [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])]
    assert compare_tensors(['a'], *pairs) == [('a', 0.5)]
    assert compare_tensors(['a'], [torch.zeros(2)], [torch.zeros(3)]) == [('a', float('inf'))]


def test_the_largest_of_several_images():
    assert largest([('a', 0.1), ('b', 0.0), ('a', 0.3)]) == [('a', 0.3), ('b', 0.0)]
