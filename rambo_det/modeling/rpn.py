"""A region proposal network that ranks its anchors by objectness."""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from torch import Tensor

from .criterion import RamboCriterion, criterion_for


@PROPOSAL_GENERATOR_REGISTRY.register()
class RamboRPN(RPN):
    """RPN whose ``loss_rpn_cls`` is the AP loss of the sampled anchors' objectness.

    The only class is ``object``. The training scalars begin with ``rambo/rpn/``.
    """

    @configurable
    def __init__(self, *, rambo_loss: RamboCriterion | None = None, **kwargs: Any) -> None:
        """
        Args:
            rambo_loss: the loss for one class; None: a RamboCriterion with its defaults.
            **kwargs: passed to RPN.
        """
        super().__init__(**kwargs)
        self.rambo_loss = criterion_for(1, rambo_loss)
        self.rambo_loss.name, self.rambo_loss.prefix = "loss_rpn_cls", "rambo/rpn"
        self.rambo_loss.class_names = ["object"]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        args["rambo_loss"] = RamboCriterion.from_cfg(cfg, 1)
        return args

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Returns the stock losses; ``loss_rpn_cls`` is the AP loss of all sampled anchors."""
        logits, name = pred_objectness_logits, "loss_rpn_cls"
        if not self.rambo_loss.stock_loss_weight():
            logits = [x.detach() for x in logits]
        stock = partial(super().losses, anchors, logits, gt_labels, pred_anchor_deltas, gt_boxes)
        labels = torch.stack(gt_labels).flatten()
        # RPN labels: 1 object, 0 background, -1 ignored. The loss: 0 object, 1 background, -1.
        classes = torch.where(labels >= 0, 1 - labels, labels)
        scores = cat(pred_objectness_logits, dim=1).reshape(-1, 1)
        scale = self.loss_weight.get(name, 1.0)
        return self.rambo_loss.replace_stock_loss(name, stock, scores, classes, scale=scale)
