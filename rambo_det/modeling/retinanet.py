"""RetinaNet with the AP loss in place of focal loss."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes
from torch import Tensor

from .architecture import check_architecture
from .criterion import RamboCriterion
from .dense import check_sigmoid_score, mixed_losses


class RamboRetinaNet(RetinaNet):
    """RetinaNet whose ``loss_cls`` is the batch-wide AP loss of all anchors' logits.

    Ignored anchors are not ranked. The loss lies in [0, 1) times its weight: unlike the focal loss
    it is not divided by the moving average of the number of positives.
    """

    @configurable
    def __init__(
        self, *, num_classes: int, rambo_loss: RamboCriterion | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            num_classes: number of foreground classes K.
            rambo_loss: the loss; None: one with its defaults.
            **kwargs: passed to RetinaNet.
        """
        super().__init__(num_classes=num_classes, **kwargs)
        self.rambo_loss = rambo_loss or RamboCriterion(num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_architecture(cfg)
        check_sigmoid_score(cfg)
        args: dict[str, Any] = super().from_config(cfg)
        args["rambo_loss"] = RamboCriterion.from_cfg(cfg, args["num_classes"])
        return args

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As the stock method; ``loss_cls`` is the AP loss of all images' anchors together."""
        return mixed_losses(
            self, super().losses, "loss_cls",
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes,
        )  # fmt: skip


if "RamboRetinaNet" not in META_ARCH_REGISTRY:  # the package may be imported a second time
    META_ARCH_REGISTRY.register(RamboRetinaNet)
