"""FCOS with the AP loss in place of focal loss."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import Tensor

from .criterion import RamboCriterion
from .dense import mixed_losses


class RamboFCOS(FCOS):
    """FCOS whose ``loss_fcos_cls`` is the batch-wide AP loss of all locations' logits.

    As FCOS itself it is built by a LazyConfig; there is no yaml for it.
    """

    def __init__(
        self, *, num_classes: int, rambo_loss: RamboCriterion | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            num_classes: number of foreground classes K.
            rambo_loss: the loss; None: one with its defaults.
            **kwargs: passed to FCOS.
        """
        super().__init__(num_classes=num_classes, **kwargs)
        self.rambo_loss = rambo_loss or RamboCriterion(num_classes, name="loss_fcos_cls")

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """As the stock method; ``loss_fcos_cls`` is the AP loss of all images together."""
        return mixed_losses(
            self, super().losses, "loss_fcos_cls",
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness,
        )  # fmt: skip
