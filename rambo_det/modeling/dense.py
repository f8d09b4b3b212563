"""What the adapters of one-stage detectors share.

Shapes: N images, R anchors over all levels, K classes, R+ anchors positive in some image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import cat
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import InputError
from .build import rambo_node
from .placement import predicted_ious


class PositiveAnchors:
    """The inputs of a stock ``losses`` cut down to the anchors that are positive in some image.

    All that a stock one-stage loss takes from other anchors is the classification loss. With these
    inputs it gives the box losses, normaliser and statistics of the full ones, and the focal loss
    of R+ rows of constants in place of R, which is dropped.

    Args:
        num_classes: K.
        anchors: Boxes of each level.
        gt_labels: N of ``(R,)`` int64; K is background, -1 ignored.
    """

    def __init__(self, num_classes: int, anchors: list[Boxes], gt_labels: list[Tensor]) -> None:
        labels = torch.stack(gt_labels)
        self._mask = ((labels >= 0) & (labels != num_classes)).any(dim=0)
        self._num_classes = num_classes
        self.anchors = [Boxes.cat(anchors)[self._mask]]
        self.gt_labels = self.per_image(gt_labels)

    def per_image(self, values: list[Tensor]) -> list[Tensor]:
        """N of ``(R, ...)`` to N of ``(R+, ...)``."""
        return [value[self._mask] for value in values]

    def per_level(self, predictions: list[Tensor]) -> list[Tensor]:
        """``(N, R of the level, D)`` of each level to one ``(N, R+, D)``, still connected."""
        return [cat(predictions, dim=1)[:, self._mask]]

    def no_logits(self, predictions: list[Tensor]) -> list[Tensor]:
        """Zeros in place of the logits: one ``(N, R+, K)`` without memory of its own."""
        shape = (len(predictions[0]), len(self.gt_labels[0]), self._num_classes)
        return [predictions[0].new_zeros(()).expand(shape)]


def flatten_dense(pred_logits: list[Tensor], gt_labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits ``(N, R of the level, K)`` of each level and N labels ``(R,)`` as one batch.

    Returns:
        ``(N * R, K)`` and ``(N * R,)``.
    """
    return cat(pred_logits, dim=1).flatten(0, 1), torch.stack(gt_labels).flatten()


def dense_ious(
    transform: Any,
    num_classes: int,
    anchors: list[Boxes],
    gt_labels: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
) -> Tensor:
    """``(N * R,)``: of each positive anchor the IoU of its predicted box, see :mod:`.placement`.

    Args:
        transform: the detector's Box2BoxTransform.
        num_classes: K.
        anchors, gt_labels, pred_anchor_deltas, gt_boxes: as those of the stock ``losses``.
    """
    boxes, deltas = Boxes.cat(anchors).tensor, cat(pred_anchor_deltas, dim=1).detach()
    found = []
    for of_image, labels, matched in zip(deltas, gt_labels, gt_boxes, strict=True):
        positive = (labels >= 0) & (labels < num_classes)
        found.append(predicted_ious(transform, of_image, boxes, matched, positive))
    return torch.cat(found)


def mixed_losses(
    model: Any,
    stock_losses: Callable[..., dict[str, Tensor]],
    name: str,
    anchors: list[Boxes],
    pred_logits: list[Tensor],
    gt_labels: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    *more_per_level: list[Tensor],
) -> dict[str, Tensor]:
    """What a one-stage detector's ``losses`` gives, with the AP loss in place of ``name``.

    Args:
        model: the detector, with ``rambo_loss``, ``num_classes`` and ``box2box_transform``.
        stock_losses: the stock method.
        name: of the classification loss.
        *more_per_level: what else the stock method takes after ``gt_boxes``.
    """
    share, stock = model.rambo_loss.shares()
    if stock:
        losses = stock_losses(
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, *more_per_level
        )
    else:
        positive = PositiveAnchors(model.num_classes, anchors, gt_labels)
        losses = stock_losses(
            positive.anchors,
            positive.no_logits(pred_logits),
            positive.gt_labels,
            positive.per_level(pred_anchor_deltas),
            positive.per_image(gt_boxes),
            *map(positive.per_level, more_per_level),
        )
    ious = None
    if model.rambo_loss.iou_thresholds:
        ious = dense_ious(
            model.box2box_transform, model.num_classes, anchors, gt_labels, pred_anchor_deltas,
            gt_boxes,
        )  # fmt: skip
    loss = model.rambo_loss(*flatten_dense(pred_logits, gt_labels), ious=ious) * share
    losses[name] = loss + losses[name] * stock if stock else loss
    return losses


def check_sigmoid_score(cfg: CfgNode) -> None:
    """Raises InputError if softmax probabilities are to be ranked: these heads have none."""
    score = rambo_node(cfg).SCORE
    if score not in ("log_odds", "logits"):
        raise InputError(
            f"MODEL.RAMBO.SCORE {score!r}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
            "scores by a sigmoid, whose log odds are the logits: use 'log_odds' or 'logits'"
        )
