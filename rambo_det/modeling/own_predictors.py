"""ROI heads with box predictors of this package in the place of the stock ones."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor


class OwnPredictors:
    """Comes before StandardROIHeads, Res5ROIHeads or CascadeROIHeads among the base classes.

    The new predictors have the weights of the stock ones, which have been drawn by then. They are
    drawn aside, so that the initial weights of everything else equal the stock model's.
    """

    @classmethod
    def predictor(
        cls, cfg: CfgNode, stock: FastRCNNOutputLayers, stage: int | None
    ) -> FastRCNNOutputLayers:
        """What takes the place of ``stock``; ``stage`` is None but for a cascade."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        args: dict[str, Any] = super().from_config(cfg, input_shape)  # type: ignore[misc]

        def swapped(stock: FastRCNNOutputLayers, stage: int | None = None) -> FastRCNNOutputLayers:
            predictor = cls.predictor(cfg, stock, stage)
            predictor.load_state_dict(stock.state_dict())
            return predictor

        with torch.random.fork_rng(devices=[]):
            if "box_predictors" in args:
                stages = enumerate(args["box_predictors"])
                args["box_predictors"] = [swapped(stock, stage) for stage, stock in stages]
            else:
                args["box_predictor"] = swapped(args["box_predictor"])
        return args


def arguments_of(stock: FastRCNNOutputLayers) -> dict[str, Any]:
    """The arguments of a predictor that its heads, and not the config alone, have chosen."""
    shape = ShapeSpec(channels=stock.cls_score.in_features)
    return {"input_shape": shape, "box2box_transform": stock.box2box_transform}


def gt_classes_of(proposals: list[Instances], logits: Tensor) -> Tensor:
    """``(N,)`` int64 classes of the N proposals of all images, whose ``logits`` are given."""
    if not proposals:
        return torch.zeros(0, dtype=torch.int64, device=logits.device)
    return cat([p.gt_classes for p in proposals], dim=0)
