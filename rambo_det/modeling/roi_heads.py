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

from .config_checks import check_roi_heads
from .criterion import RamboCriterion
from .output_layers import RamboFastRCNNOutputLayers


class _RamboPredictors:
    """Gives heads a :class:`RamboFastRCNNOutputLayers` in the place of each stock box predictor.

    Comes first among the base classes. The new predictors have the weights of the stock ones, which
    have been drawn by then. They are drawn aside, so that the initial weights of everything else
    equal the stock model's.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        check_roi_heads(cfg, shared_boxes=issubclass(cls, CascadeROIHeads))
        args: dict[str, Any] = super().from_config(cfg, input_shape)  # type: ignore[misc]

        def swapped(stock: FastRCNNOutputLayers, **named: str) -> RamboFastRCNNOutputLayers:
            # The heads choose input shape and box transform, not the config alone.
            shape = ShapeSpec(channels=stock.cls_score.in_features)
            loss = RamboCriterion.from_cfg(cfg, stock.num_classes, **named)
            predictor = RamboFastRCNNOutputLayers(
                cfg, input_shape=shape, box2box_transform=stock.box2box_transform, rambo_loss=loss
            )
            predictor.load_state_dict(stock.state_dict())
            return predictor

        with torch.random.fork_rng(devices=[]):
            if "box_predictors" in args:
                args["box_predictors"] = [
                    swapped(stock, name=f"loss_cls_stage{stage}")
                    for stage, stock in enumerate(args["box_predictors"])
                ]
            else:
                args["box_predictor"] = swapped(args["box_predictor"])
        return args


@ROI_HEADS_REGISTRY.register()
class RamboROIHeads(_RamboPredictors, StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; masks and key points as before."""

    # For torch.jit.script; Detectron2 says so of StandardROIHeads alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]


@ROI_HEADS_REGISTRY.register()
class RamboRes5ROIHeads(_RamboPredictors, Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`RamboFastRCNNOutputLayers`."""


@ROI_HEADS_REGISTRY.register()
class RamboCascadeROIHeads(_RamboPredictors, CascadeROIHeads):
    """CascadeROIHeads with a :class:`RamboFastRCNNOutputLayers`, hence a memory, for each stage."""
