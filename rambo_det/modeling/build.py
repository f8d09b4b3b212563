"""From the node MODEL.RAMBO to the arguments of a RamboLoss."""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import CfgNode

from ..errors import InputError

_RULES = ("lift", "each", "fixed")


def loss_arguments(cfg: CfgNode) -> dict[str, Any]:
    """The keyword arguments of the RamboLoss that ``cfg.MODEL.RAMBO`` describes.

    Raises:
        InputError: the node is missing, or a key is out of its range.
    """
    rambo = rambo_node(cfg)
    _require(rambo.LAMBDA_RULE in _RULES, "LAMBDA_RULE", rambo.LAMBDA_RULE, f"one of {_RULES}")
    for key in ("LAMBDA", "LIFT", "MARGIN", "LOSS_WEIGHT"):
        _require(math.isfinite(rambo[key]), key, rambo[key], "finite")
    _require(rambo.LAMBDA > 0, "LAMBDA", rambo.LAMBDA, "> 0")
    _require(rambo.LIFT > 0, "LIFT", rambo.LIFT, "> 0")
    _require(rambo.MARGIN >= 0, "MARGIN", rambo.MARGIN, ">= 0")
    _require(0 <= rambo.BETA <= 1, "BETA", rambo.BETA, "in [0, 1]")
    _require(rambo.MEMORY_LENGTH >= 0, "MEMORY_LENGTH", rambo.MEMORY_LENGTH, ">= 0")
    _require(rambo.MEMORY_SIZE >= 8, "MEMORY_SIZE", rambo.MEMORY_SIZE, ">= 8")
    _require(rambo.LOSS_WEIGHT > 0, "LOSS_WEIGHT", rambo.LOSS_WEIGHT, "> 0")
    _require(0 <= rambo.CE_WEIGHT < math.inf, "CE_WEIGHT", rambo.CE_WEIGHT, ">= 0 and finite")
    _require(rambo.CE_WARMUP >= 0, "CE_WARMUP", rambo.CE_WARMUP, ">= 0")
    thresholds = rambo.IOU_THRESHOLDS
    _require(
        all(isinstance(t, (int, float)) and 0 < t <= 1 for t in thresholds)
        and sorted(set(thresholds)) == list(thresholds),
        "IOU_THRESHOLDS", thresholds, "numbers in (0, 1] that rise",
    )  # fmt: skip
    return {
        "margin": rambo.MARGIN,
        "lambda_": rambo.LAMBDA if rambo.LAMBDA_RULE == "fixed" else None,
        "lift": rambo.LIFT,
        "each": rambo.LAMBDA_RULE == "each",
        "beta": rambo.BETA,
        "memory_length": rambo.MEMORY_LENGTH,
        "memory_size": rambo.MEMORY_SIZE,
        "global_ranking": rambo.GLOBAL_RANKING,
        "iou_thresholds": tuple(thresholds),
    }


def rambo_node(cfg: CfgNode) -> CfgNode:
    """``cfg.MODEL.RAMBO``; an InputError that names the remedy where it is missing."""
    if "RAMBO" not in cfg.MODEL:
        raise InputError("config has no MODEL.RAMBO: call rambo_det.add_rambo_config(cfg) first")
    return cfg.MODEL.RAMBO


def refuse_fed_loss(use_fed_loss: bool) -> None:
    """Raises InputError where the federated loss, which samples classes, is asked for as well."""
    if use_fed_loss:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS cannot go with the RaMBO loss: set it to False"
        )


def refuse_class_agnostic(cfg: CfgNode) -> None:
    """Raises InputError for heads that predict one box for all classes."""
    if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG cannot be combined with "
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME}: set it to False, or use "
            "RamboCascadeROIHeads, whose stages share their boxes"
        )


def _require(holds: bool, key: str, value: Any, right: str) -> None:
    if not holds:
        raise InputError(f"MODEL.RAMBO.{key} must be {right}, got {value!r}")
