"""What the adapters of one-stage detectors share.

Shapes: N images, R anchors over all levels, K classes, R+ anchors positive in some image.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import cat
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import InputError
from .build import rambo_node


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


def check_sigmoid_score(cfg: CfgNode) -> None:
    """Raises InputError if softmax probabilities are to be ranked: these heads have none."""
    score = rambo_node(cfg).SCORE
    if score not in ("log_odds", "logits"):
        raise InputError(
            f"MODEL.RAMBO.SCORE {score!r}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
            "scores by a sigmoid, whose log odds are the logits: use 'log_odds' or 'logits'"
        )
