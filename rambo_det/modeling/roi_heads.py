"""ROI heads whose box heads are trained with the AP loss."""

from typing import Any

import torch
from detectron2.config import CfgNode
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
from .own_predictors import OwnPredictors, arguments_of


class _Rambo(OwnPredictors):
    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        check_roi_heads(cfg, shared_boxes=issubclass(cls, CascadeROIHeads))
        return super().from_config(cfg, input_shape)

    @classmethod
    def predictor(
        cls, cfg: CfgNode, stock: FastRCNNOutputLayers, stage: int | None
    ) -> RamboFastRCNNOutputLayers:
        named = {} if stage is None else {"prefix": "", "name": f"loss_cls_stage{stage}"}
        loss = RamboCriterion.from_cfg(cfg, stock.num_classes, **named)
        return RamboFastRCNNOutputLayers(cfg, rambo_loss=loss, **arguments_of(stock))


class RamboROIHeads(_Rambo, StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; masks and key points as before."""

    # For torch.jit.script; Detectron2 says so of StandardROIHeads alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]


class RamboRes5ROIHeads(_Rambo, Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`RamboFastRCNNOutputLayers`."""


class RamboCascadeROIHeads(_Rambo, CascadeROIHeads):
    """CascadeROIHeads with a :class:`RamboFastRCNNOutputLayers`, hence a memory, for each stage."""

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


for _heads in (RamboROIHeads, RamboRes5ROIHeads, RamboCascadeROIHeads):
    if _heads.__name__ not in ROI_HEADS_REGISTRY:  # the package may be imported a second time
        ROI_HEADS_REGISTRY.register(_heads)
