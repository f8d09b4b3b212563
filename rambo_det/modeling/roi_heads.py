"""ROI heads whose box heads are trained with the AP loss."""

# No `from __future__ import annotations`: torch.jit.script reads those of classes as they are.
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances
from torch import Tensor

from .architecture import check_rpn_key
from .build import refuse_class_agnostic, refuse_fed_loss
from .criterion import RamboCriterion
from .fast_rcnn import RamboFastRCNNOutputLayers


class RamboROIHeads(StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; masks and keypoints ride along."""

    # For torch.jit.script; Detectron2 says so of StandardROIHeads alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        _check(cfg)
        refuse_class_agnostic(cfg)
        args: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        args["box_predictor"] = _rambo_predictor(cfg, args["box_predictor"])
        return args


class RamboRes5ROIHeads(Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`RamboFastRCNNOutputLayers`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        _check(cfg)
        refuse_class_agnostic(cfg)
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        args["box_predictor"] = _rambo_predictor(cfg, args["box_predictor"])
        return args


class RamboCascadeROIHeads(CascadeROIHeads):
    """CascadeROIHeads with a :class:`RamboFastRCNNOutputLayers`, hence a memory, for each stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        _check(cfg)
        args: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        args["box_predictors"] = [
            _rambo_predictor(cfg, stock, prefix="", name=f"loss_cls_stage{stage}")
            for stage, stock in enumerate(args["box_predictors"])
        ]
        return args

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Any:
        result = super()._forward_box(features, proposals, targets)
        if self.training:
            # Not where super() calls the losses: it would put its own prefix before "rambo/".
            for stage, predictor in enumerate(self.box_predictor):
                predictor.rambo_loss.log(f"rambo/stage{stage}")
        return result


def _check(cfg: CfgNode) -> None:
    # Before super() builds a stock predictor, which asks for other keys first.
    refuse_fed_loss(cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False))
    check_rpn_key(cfg)


def _rambo_predictor(
    cfg: CfgNode, stock: FastRCNNOutputLayers, **kwargs: Any
) -> RamboFastRCNNOutputLayers:
    """The predictor that stands for ``stock``, with its weights; ``kwargs``: of its criterion.

    super() has drawn the stock one; drawing ours aside keeps the initial weights of everything
    else equal to the stock model's.
    """
    with torch.random.fork_rng(devices=[]):
        predictor = RamboFastRCNNOutputLayers(
            cfg,
            ShapeSpec(channels=stock.cls_score.in_features),
            box2box_transform=stock.box2box_transform,
            rambo_loss=RamboCriterion.from_cfg(cfg, stock.num_classes, **kwargs),
        )
    predictor.load_state_dict(stock.state_dict())
    return predictor


for _heads in (RamboROIHeads, RamboRes5ROIHeads, RamboCascadeROIHeads):
    if _heads.__name__ not in ROI_HEADS_REGISTRY:  # the package may be imported a second time
        ROI_HEADS_REGISTRY.register(_heads)
