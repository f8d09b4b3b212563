"""ROI heads whose box head is trained with the AP loss."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

from .build import refuse_fed_loss
from .fast_rcnn import RamboFastRCNNOutputLayers


class RamboROIHeads(StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; masks and keypoints ride along."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # Before super() builds a stock predictor, which asks for other keys first.
        refuse_fed_loss(cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False))
        args: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        # super() has drawn a predictor of its own; drawing ours from the same random state keeps
        # the initial weights of everything else equal to the stock model's.
        stock = args["box_predictor"]
        with torch.random.fork_rng(devices=[]):
            predictor = RamboFastRCNNOutputLayers(cfg, args["box_head"].output_shape)
        predictor.load_state_dict(stock.state_dict())
        args["box_predictor"] = predictor
        return args


if "RamboROIHeads" not in ROI_HEADS_REGISTRY:  # the package may be imported a second time
    ROI_HEADS_REGISTRY.register(RamboROIHeads)
