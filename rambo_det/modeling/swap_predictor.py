"""Puts a box predictor of this package in the place of a stock one."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers


def swap_predictors(
    args: dict[str, Any], make: Callable[[FastRCNNOutputLayers, int | None], FastRCNNOutputLayers]
) -> dict[str, Any]:
    """The arguments of ROI heads with predictors by ``make(stock, stage)`` and the stock weights.

    The stock predictor has been drawn. The new one is drawn aside, so that the initial weights of
    everything else equal the stock model's.

    Args:
        args: of StandardROIHeads, Res5ROIHeads or CascadeROIHeads, from their ``from_config``.
        make: ``stage`` is None but for a cascade.
    """
    with torch.random.fork_rng(devices=[]):
        if "box_predictors" in args:
            stages = enumerate(args["box_predictors"])
            args["box_predictors"] = [_with_weights(make(p, stage), p) for stage, p in stages]
        else:
            stock = args["box_predictor"]
            args["box_predictor"] = _with_weights(make(stock, None), stock)
    return args


def _with_weights(
    predictor: FastRCNNOutputLayers, stock: FastRCNNOutputLayers
) -> FastRCNNOutputLayers:
    predictor.load_state_dict(stock.state_dict())
    return predictor
