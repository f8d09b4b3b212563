"""ROI heads whose box heads are trained with the AP loss."""

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

from .config_checks import check_roi_heads
from .criterion import RamboCriterion
from .output_layers import RamboFastRCNNOutputLayers
from .swap_predictor import swap_predictors


class RamboROIHeads(StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; masks and key points as before."""

    # For torch.jit.script; Detectron2 says so of StandardROIHeads alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_roi_heads(cfg, shared_boxes=False)
        return _swap(cfg, super().from_config(cfg, input_shape))


class RamboRes5ROIHeads(Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`RamboFastRCNNOutputLayers`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_roi_heads(cfg, shared_boxes=False)
        return _swap(cfg, super().from_config(cfg, input_shape))


class RamboCascadeROIHeads(CascadeROIHeads):
    """CascadeROIHeads with a :class:`RamboFastRCNNOutputLayers`, hence a memory, for each stage."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_roi_heads(cfg, shared_boxes=True)
        return _swap(cfg, super().from_config(cfg, input_shape))

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


def _swap(cfg: CfgNode, args: dict[str, Any]) -> dict[str, Any]:
    def make(stock: FastRCNNOutputLayers, stage: int | None) -> RamboFastRCNNOutputLayers:
        named = {} if stage is None else {"prefix": "", "name": f"loss_cls_stage{stage}"}
        return RamboFastRCNNOutputLayers(
            cfg,
            ShapeSpec(channels=stock.cls_score.in_features),
            box2box_transform=stock.box2box_transform,
            rambo_loss=RamboCriterion.from_cfg(cfg, stock.num_classes, **named),
        )

    return swap_predictors(args, make)


for _heads in (RamboROIHeads, RamboRes5ROIHeads, RamboCascadeROIHeads):
    if _heads.__name__ not in ROI_HEADS_REGISTRY:  # the package may be imported a second time
        ROI_HEADS_REGISTRY.register(_heads)
