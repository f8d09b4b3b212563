"""Fast R-CNN's box heads with focal loss, which Detectron2 has for RetinaNet alone.

Here to compare with: the same layers, hence checkpoints, as the stock heads.
"""

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from .config_checks import refuse_fed_loss
from .own_predictors import OwnPredictors, arguments_of, gt_classes_of


class FocalFastRCNNOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers whose scores are sigmoids and whose ``loss_cls`` is focal loss.

    The loss is summed over the K classes of all proposals and divided by the number of foreground
    proposals, at least 1. The column of the background takes no part. The layers are those of the
    stock class; the bias of the K classes starts at the log odds of the prior, as RetinaNet's.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_prob: float = 0.01,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: as the stock class.
            num_classes: number of foreground classes K.
            focal_alpha, focal_gamma, prior_prob: as those of Detectron2's RetinaNet;
                ``from_config`` takes them from RetinaNet's keys in ``MODEL.RETINANET``.
            **kwargs: passed to FastRCNNOutputLayers.
        """
        refuse_fed_loss(kwargs.get("use_fed_loss", False))
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.prior_prob = prior_prob
        self.start_at_prior()

    def start_at_prior(self) -> None:
        """Sets the bias of the K classes such that each scores ``prior_prob``."""
        bias = -math.log((1 - self.prior_prob) / self.prior_prob)
        nn.init.constant_(self.cls_score.bias[:-1], bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        args["focal_alpha"] = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
        args["focal_gamma"] = cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA
        args["prior_prob"] = cfg.MODEL.RETINANET.PRIOR_PROB
        return args

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As the stock method; ``loss_cls`` is the focal loss."""
        logits, deltas = predictions
        # Detached logits: super() gives the box loss, its weights and the logged statistics.
        losses: dict[str, Tensor] = super().losses((logits.detach(), deltas), proposals)
        classes = torch.arange(self.num_classes, device=logits.device)
        targets = (gt_classes_of(proposals, logits)[:, None] == classes).to(logits.dtype)
        loss = sigmoid_focal_loss(
            logits[:, :-1], targets, self.focal_alpha, self.focal_gamma, reduction="sum"
        )
        loss = loss / targets.sum().clamp(min=1)
        losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """As the stock method: a sigmoid of each class."""
        return predictions[0].sigmoid().split([len(p) for p in proposals], dim=0)


class _Focal(OwnPredictors):
    @classmethod
    def predictor(
        cls, cfg: CfgNode, stock: FastRCNNOutputLayers, stage: int | None
    ) -> FocalFastRCNNOutputLayers:
        return FocalFastRCNNOutputLayers(cfg, **arguments_of(stock))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        # The stock weights but for the bias of the classes.
        for predictor in args.get("box_predictors") or [args["box_predictor"]]:
            predictor.start_at_prior()
        return args


class FocalROIHeads(_Focal, StandardROIHeads):
    """StandardROIHeads with :class:`FocalFastRCNNOutputLayers`."""


class FocalRes5ROIHeads(_Focal, Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`FocalFastRCNNOutputLayers`."""


class FocalCascadeROIHeads(_Focal, CascadeROIHeads):
    """CascadeROIHeads with a :class:`FocalFastRCNNOutputLayers` for each stage."""


for _heads in (FocalROIHeads, FocalRes5ROIHeads, FocalCascadeROIHeads):
    if _heads.__name__ not in ROI_HEADS_REGISTRY:  # the package may be imported a second time
        ROI_HEADS_REGISTRY.register(_heads)
