"""Parts of mmdet whose sizes depend on what is found, written for graphs: the same numbers.

A graph is recorded once for all images, so Python may not ask how many boxes there are. Here every
list has a fixed length until the end, and what is not there has a negative score.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmengine.structures import base_data_element
from torch import Tensor

from ..utils.errors import LaunchError
from .sizes import Sizes, linspace_of_sizes, new_tensor_of_sizes, pooling_of_sizes

NOT_THERE = -1.0  # the score of what only fills a list up
FAR_AWAY = [[-1e6, -1e6, -9e5, -9e5], [-9e6, -9e6, -8e6, -8e6]]  # boxes that meet no other
NO_LOGIT = -1e4  # its logit: no activation makes a score of it
SMALLEST = -1e9  # less than every side of a box


@contextmanager
def for_graphs() -> Iterator[None]:
    """Let mmdet's models compute in a block so that ``torch.export`` can record them."""
    with ExitStack() as stack:
        for original, replacement in _functions().items():
            for module in list(sys.modules.values()):
                names = getattr(module, '__dict__', {}) if _is_of_toolboxes(module) else {}
                for name, value in list(names.items()):
                    if value is original:
                        stack.enter_context(patch.object(module, name, replacement))
        # Sizes are no numbers yet, and have no copies.
        uncopied = SimpleNamespace(deepcopy=lambda value: dict(value))
        stack.enter_context(patch.object(base_data_element, 'copy', uncopied))
        for owner, name, wrap in _attributes():
            stack.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))
        yield


def _is_of_toolboxes(module: object) -> bool:
    return getattr(module, '__name__', '').split('.')[0] in ('mmcv', 'mmdet', 'mmseg')


def _functions() -> dict[Callable, Callable]:
    """Functions by what replaces them, in every module that has imported them."""
    functions: dict[Callable, Callable] = {}
    if 'mmdet' in sys.modules:
        from mmcv.ops.nms import batched_nms as mmcv_nms
        from mmdet.models.layers.bbox_nms import multiclass_nms as mmdet_nms
        from mmdet.models.utils.misc import filter_scores_and_topk as mmdet_topk

        functions[mmcv_nms] = batched_nms
        functions[mmdet_nms] = multiclass_nms
        functions[mmdet_topk] = filter_scores_and_topk
    if 'mmseg' in sys.modules:
        from mmseg.models.utils import resize as mmseg_resize

        functions[mmseg_resize] = resize
    return functions


def _attributes() -> Iterator[tuple[object, str, Callable]]:
    """Methods of classes and functions of torch, and what makes another one of each."""
    yield Tensor, 'new_tensor', new_tensor_of_sizes
    yield torch, 'linspace', linspace_of_sizes
    yield torch, '_shape_as_tensor', lambda _: Sizes.of_map
    yield F, 'adaptive_avg_pool2d', pooling_of_sizes
    if 'mmdet' in sys.modules:
        from mmcv.ops import RoIAlign
        from mmdet.models.dense_heads import RPNHead, YOLOV3Head, YOLOXHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

        yield BaseDenseHead, '_bbox_post_process', _without_a_least_size
        yield RPNHead, '_bbox_post_process', _with_small_boxes_marked
        yield RPNHead, '_predict_by_feat_single', _with_best_selected
        yield YOLOV3Head, 'predict_by_feat', _with_unlikely_cells_marked
        yield YOLOXHead, 'predict_by_feat', lambda _: predict_of_yolox
        yield RoIAlign, 'forward', lambda _: roi_align
        yield SingleRoIExtractor, 'forward', lambda _: extract_rois
        yield StandardRoIHead, 'predict_mask', lambda _: predict_mask
        yield CascadeRoIHead, 'predict_mask', lambda _: predict_cascade_mask
    if 'mmseg' in sys.modules:
        from mmseg.models.utils import Upsample

        yield Upsample, 'forward', lambda _: upsample


def found(scores: Tensor) -> Tensor:
    """The positions of what is there."""
    return scores.clamp(min=0).nonzero()[:, 0]  # of floats: TensorRT has it for no booleans


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best of scores ``[N]`` and their positions; fewer are filled up."""
    filled = torch.cat([scores.new_full((count,), NOT_THERE), scores])
    scores, positions = filled.topk(count)
    return scores, (positions - count).clamp(min=0)


def filter_scores_and_topk(scores, score_thr, topk, results=None):
    """mmdet's function of that name: the best pairs of box and class above a threshold."""
    if topk <= 0:
        raise LaunchError(f'nms_pre={topk}: a graph needs the number of boxes that go into NMS')
    classes = scores.shape[1]
    scores = torch.where(scores > score_thr, scores, scores.new_tensor(NOT_THERE))
    scores, positions = best(scores.flatten(), topk)
    boxes, labels = positions // classes, positions % classes
    if isinstance(results, dict):
        results = {key: value[boxes] for key, value in results.items()}
    elif isinstance(results, list):
        results = [value[boxes] for value in results]
    elif results is not None:
        results = results[boxes]
    return scores, labels, boxes, results


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    """mmcv's function of that name, by the standard operator; as many come out as go in."""
    from torchvision.ops import nms

    options = dict(nms_cfg or {})
    kind = options.pop('type', 'nms')
    if kind != 'nms':
        raise LaunchError(f'nms={kind!r}: runtimes have the standard one only, nms')
    by_class = not options.pop('class_agnostic', class_agnostic)
    threshold = options.pop('iou_threshold')
    options.pop('split_thr', None)  # by which mmcv shares the work out
    if options:
        raise LaunchError(f'nms has {options}: runtimes have iou_threshold alone; leave these out')
    there, count = found(scores), scores.shape[0]
    of_nms = boxes[there]
    if by_class:
        largest = torch.where(scores[:, None] > 0, boxes, boxes.new_tensor(SMALLEST)).max()
        of_nms = of_nms + idxs[there].to(boxes)[:, None] * (largest + 1)
    # torchvision says that two are kept at least: two that are not there see to it.
    of_nms = torch.cat([of_nms, boxes.new_tensor(FAR_AWAY)])
    of_scores = torch.cat([scores[there], scores.new_full((2,), NOT_THERE)])
    # The best box fills up: one that is not there would be new to the head of a second stage.
    best_one = scores.argmax()
    there = torch.cat([there, best_one.expand(2)])
    kept = nms(of_nms, of_scores, threshold)
    order = torch.cat([there[kept], best_one.expand(count)]).narrow(0, 0, count)
    left = torch.cat([of_scores[kept], scores.new_full((count,), NOT_THERE)]).narrow(0, 0, count)
    return torch.cat([boxes[order], left[:, None]], -1), order


def multiclass_nms(
    multi_bboxes, multi_scores, score_thr, nms_cfg, max_num=-1, score_factors=None,
    return_inds=False, box_dim=4,
):  # fmt: skip
    """mmdet's function of that name: NMS of boxes of every class."""
    scores = multi_scores[:, :-1]
    classes = scores.shape[1]
    boxes = multi_bboxes.view(multi_bboxes.shape[0], -1, box_dim)
    boxes = boxes.expand(-1, classes, box_dim).reshape(-1, box_dim)
    labels = torch.arange(classes, device=scores.device).expand_as(scores).reshape(-1)
    is_there = scores > score_thr
    if score_factors is not None:
        scores = scores * score_factors.view(-1, 1)
    scores = torch.where(is_there, scores, scores.new_tensor(NOT_THERE)).reshape(-1)
    dets, kept = batched_nms(boxes, scores, labels, nms_cfg)
    if max_num > 0:
        dets, kept = dets[:max_num], kept[:max_num]
    return (dets, labels[kept], kept) if return_inds else (dets, labels[kept])


def _without_a_least_size(original):
    marked = _with_small_boxes_marked(original)

    def post_process(self, results, cfg, *args, **kwargs):
        least = cfg.get('min_bbox_size', -1)
        if least > 0:
            raise LaunchError(
                f'min_bbox_size={least} is of boxes in the image file, whose scale a graph does '
                'not know: set it to 0, and leave small boxes out afterwards'
            )
        return marked(self, results, cfg, *args, **kwargs)

    return post_process


def _with_small_boxes_marked(original):
    def post_process(self, results, cfg, *args, **kwargs):
        least = cfg.get('min_bbox_size', -1)
        if least >= 0:
            left, top, right, bottom = results.bboxes.unbind(-1)
            is_there = (right - left > least) & (bottom - top > least)
            scores = results.scores
            results.scores = torch.where(is_there, scores, scores.new_tensor(NOT_THERE))
            cfg = type(cfg)(dict(cfg, min_bbox_size=-1))
        return original(self, results, cfg, *args, **kwargs)

    return post_process


def _with_best_selected(original):
    """Select the best of each level before the head does, which then finds as many as it takes."""

    def predict(self, *args, **kwargs):
        names = 'cls_score_list', 'bbox_pred_list', 'score_factor_list', 'mlvl_priors'
        lists = [*args, *(kwargs.pop(name) for name in names[len(args) :])]
        classes, boxes, factors, priors = lists
        cfg = self.test_cfg if kwargs.get('cfg') is None else kwargs['cfg']
        levels = [_select(self, *level, cfg['nms_pre']) for level in zip(classes, boxes, priors)]
        classes, boxes, priors = map(list, zip(*levels))
        return _with_exact_sigmoid(original)(self, classes, boxes, factors, priors, **kwargs)

    return predict


def _with_exact_sigmoid(original):
    def predict(self, *args, **kwargs):
        with patch.object(Tensor, 'sigmoid', sigmoid):
            return original(self, *args, **kwargs)

    return predict


def _with_unlikely_cells_marked(original):
    """``predict_by_feat`` of mmdet's ``YOLOV3Head``, from which no cells are taken out."""

    def predict(self, pred_maps, batch_img_metas, cfg=None, **kwargs):
        cfg = self.test_cfg if cfg is None else cfg
        least = cfg.get('conf_thr', -1)
        if least > 0:
            pred_maps = [_mark_unlikely(pred, self.num_attrib, least) for pred in pred_maps]
            cfg = type(cfg)(dict(cfg, conf_thr=-1))
        return _with_exact_sigmoid(original)(self, pred_maps, batch_img_metas, cfg, **kwargs)

    return predict


def _mark_unlikely(pred, size, least):
    """A map ``[1, anchors * size, H, W]`` of x, y, w, h, objectness and classes of each anchor."""
    _, channels, height, width = pred.shape
    parts = pred.view(1, channels // size, size, height, width)
    boxes, objects, classes = parts.split([4, 1, size - 5], 2)
    classes = torch.where(sigmoid(objects) >= least, classes, pred.new_tensor(NO_LOGIT))
    return torch.cat([boxes, objects, classes], 2).view(1, channels, height, width)


def sigmoid(x):
    """``Tensor.sigmoid`` that keeps small numbers apart, by which boxes are ranked.

    That of ONNX Runtime (1.32) is zero for all logits below -18, and off by 1e-7 above.
    """
    return 1 / (1 + (-x).exp())


def _select(head, cls_score, bbox_pred, priors, count):
    """The best ``count`` of one level, as maps of one column."""
    logits = cls_score.permute(1, 2, 0).reshape(-1, head.cls_out_channels)
    deltas = bbox_pred.permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)
    nothing = logits.new_full((count, logits.shape[1]), NO_LOGIT)
    nothing[:, 1:] = -NO_LOGIT  # of softmax: all of it background
    logits = torch.cat([nothing, logits])
    deltas = torch.cat([deltas.new_zeros(count, deltas.shape[1]), deltas])
    priors = torch.cat([priors.new_zeros(count, priors.shape[1]), priors])
    ranks = logits[:, 0] if head.use_sigmoid_cls else logits.softmax(-1)[:, 0]
    order = ranks.topk(count).indices
    return logits[order].T[:, :, None], deltas[order].T[:, :, None], priors[order]


def predict_of_yolox(
    self, cls_scores, bbox_preds, objectnesses, batch_img_metas, cfg=None, rescale=False,
    with_nms=True,
):  # fmt: skip
    """``predict_by_feat`` of mmdet's ``YOLOXHead``, of one image."""
    cfg = cfg or self.test_cfg
    classes, boxes, objects = (
        torch.cat([level[0].flatten(1).T for level in levels])
        for levels in (cls_scores, bbox_preds, objectnesses)
    )
    sizes = [level.shape[2:] for level in cls_scores]
    priors = self.prior_generator.grid_priors(sizes, boxes.dtype, boxes.device, with_stride=True)
    scores, labels = sigmoid(classes).max(1)
    scores = scores * sigmoid(objects[:, 0])
    scores = torch.where(scores >= cfg.score_thr, scores, scores.new_tensor(NOT_THERE))
    boxes = self._bbox_decode(torch.cat(priors), boxes)
    dets, kept = batched_nms(boxes, scores, labels, cfg.nms)
    return [SimpleNamespace(bboxes=boxes[kept], scores=dets[:, -1], labels=labels[kept])]


def roi_align(self, input, rois):
    """``forward`` of mmcv's ``RoIAlign``, by the standard operator."""
    from torchvision.ops import roi_align as standard

    if self.pool_mode != 'avg':
        raise LaunchError(f'RoIAlign with pool_mode={self.pool_mode!r}: runtimes have avg only')
    # torchvision's word for «as many as the bin has» is another one.
    samples = self.sampling_ratio or -1
    return standard(input, rois, self.output_size, self.spatial_scale, samples, self.aligned)


def extract_rois(self, feats, rois, roi_scale_factor=None):
    """``forward`` of mmdet's ``SingleRoIExtractor``: regions from the level of their size."""
    if len(feats) == 1:
        return self.roi_layers[0](feats[0], rois)
    levels = self.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = self.roi_rescale(rois, roi_scale_factor)
    out = rois.new_zeros(rois.shape[0], self.out_channels, *self.roi_layers[0].output_size)
    for level, (feat, layer) in enumerate(zip(feats, self.roi_layers)):
        here = (levels == level).float().nonzero()[:, 0]
        out = out.index_put((here,), layer(feat, rois[here]))
    return out


def predict_mask(self, x, batch_img_metas, results_list, rescale=False):
    """``predict_mask`` of mmdet's ``StandardRoIHead``, up to the maps inside of the boxes."""
    return [_with_masks(self, results_list[0], lambda rois: self._mask_forward(x, rois))]


def predict_cascade_mask(self, x, batch_img_metas, results_list, rescale=False):
    """``predict_mask`` of mmdet's ``CascadeRoIHead``: the mean of what its stages say."""

    def forward(rois):
        stages = [self._mask_forward(i, x, rois)['mask_preds'] for i in range(self.num_stages)]
        mean = torch.stack([stage.sigmoid() for stage in stages]).mean(0)
        return dict(mask_preds=mean.logit())

    return [_with_masks(self, results_list[0], forward, self.mask_head[-1])]


def _with_masks(roi_head, results, forward, mask_head=None):
    there = found(results.scores)
    boxes, labels = results.bboxes[there], results.labels[there]
    rois = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], -1)
    masks = forward(rois)['mask_preds'].sigmoid()
    if (mask_head or roi_head.mask_head).class_agnostic:
        masks = masks[:, 0]
    else:
        masks = masks[torch.arange(masks.shape[0], device=masks.device), labels]
    return SimpleNamespace(bboxes=boxes, scores=results.scores[there], labels=labels, masks=masks)


def resize(input, size=None, scale_factor=None, mode='nearest', align_corners=None, warning=True):
    """mmseg's function of that name, without its look at the sizes."""
    return F.interpolate(input, size, scale_factor, mode, align_corners)


def upsample(self, x):
    """``forward`` of mmseg's ``Upsample``, whose factors are whole numbers."""
    factor = self.scale_factor
    if not self.size and factor != int(factor):
        raise LaunchError(f'Upsample by {factor}: a graph for all sizes takes whole numbers')
    size = self.size or [side * int(factor) for side in x.shape[-2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)
