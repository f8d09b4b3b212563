"""How well boxes, as a detector now predicts them, fit their ground truth."""

# No `from __future__ import annotations`: torch.jit.script reads unused methods' as they are.
from typing import Any

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor


@torch.no_grad()
def predicted_box_iou(
    transform: Any, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, positive: Tensor
) -> Tensor:
    """``(N,)`` float32: IoU of each positive row's predicted box with its ground truth; else 0.

    Args:
        transform: a Box2BoxTransform of Detectron2.
        deltas: ``(N, 4)`` of the box of the row's class.
        boxes, gt_boxes: ``(N, 4)`` px, what the deltas start from and what they should end at.
        positive: ``(N,)`` bool.
    """
    ious = boxes.new_zeros(boxes.shape[0], dtype=torch.float32)
    predicted = transform.apply_deltas(deltas[positive].float(), boxes[positive])
    ious[positive] = matched_pairwise_iou(Boxes(predicted), Boxes(gt_boxes[positive])).float()
    return ious


def class_deltas(deltas: Tensor, gt_classes: Tensor, num_classes: int) -> Tensor:
    """``(N, 4)`` deltas of each row's class from ``(N, 4)`` or ``(N, 4 K)``."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(deltas.shape[0], device=deltas.device)
    # A row without a class has no box either: any column will do.
    return deltas.view(deltas.shape[0], -1, 4)[rows, gt_classes.clamp(0, num_classes - 1)]
