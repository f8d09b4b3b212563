"""Values of a config over which Detectron2 stumbles only once a run has begun."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from ..errors import InputError

_REGISTRIES = {
    "META_ARCHITECTURE": META_ARCH_REGISTRY,
    "BACKBONE.NAME": BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
}
_DEPTHS = (18, 34, 50, 101, 152)


def check_model(cfg: CfgNode) -> None:
    """Raises InputError for a part of the model, or a device, that does not exist."""
    for key, registry in _REGISTRIES.items():
        name: Any = cfg.MODEL
        for part in key.split("."):
            name = name[part]
        if name not in registry and name != "PrecomputedProposals":
            known = ", ".join(sorted(dict(registry)))
            raise InputError(f"MODEL.{key}: there is no {name!r}, only {known}")
    if "resnet" in cfg.MODEL.BACKBONE.NAME and cfg.MODEL.RESNETS.DEPTH not in _DEPTHS:
        raise InputError(f"MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH} is none of {_DEPTHS}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r}: use cpu, cuda or cuda:1") from None


def check_training(cfg: CfgNode) -> None:
    """Raises InputError if nothing can be trained with these data and this solver."""
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name a data set to train on, ('NAME',)")
    for key in ("MAX_ITER", "IMS_PER_BATCH"):
        if cfg.SOLVER[key] < 1:
            raise InputError(f"SOLVER.{key} must be >= 1, got {cfg.SOLVER[key]}")
    if not 0 < cfg.SOLVER.BASE_LR < float("inf"):
        raise InputError(f"SOLVER.BASE_LR must be > 0, got {cfg.SOLVER.BASE_LR}")
    _check_following(cfg)
    logging.disable(logging.WARNING)  # they come again when the run builds its own
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))
    except (ValueError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}: {message}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _check_following(cfg: CfgNode) -> None:
    node = cfg.RAMBO_TRAIN
    for key in ("PATIENCE", "IMAGES"):
        if node[key] < 0:
            raise InputError(f"RAMBO_TRAIN.{key} must be >= 0, got {node[key]}")
    if not 0 < node.CLS_WEIGHT < float("inf"):
        raise InputError(f"RAMBO_TRAIN.CLS_WEIGHT must be > 0, got {node.CLS_WEIGHT}")
    if cfg.TEST.EVAL_PERIOD < 1:
        if node.PATIENCE:
            raise InputError(
                "RAMBO_TRAIN.PATIENCE needs evaluations to wait for: set TEST.EVAL_PERIOD, which "
                f"is {cfg.TEST.EVAL_PERIOD}, to a number of iterations"
            )
        return
    if not (node.KEEP_BEST or node.PATIENCE):
        return
    metric, tests = node.BEST_METRIC, cfg.DATASETS.TEST
    if not tests:
        raise InputError("DATASETS.TEST is empty: name a data set to evaluate on, ('NAME',)")
    if len(tests) > 1:
        name, _, metric = metric.partition("/")
        if name not in tests:
            raise InputError(
                f"RAMBO_TRAIN.BEST_METRIC {node.BEST_METRIC!r} does not say on which of the data "
                f"sets of DATASETS.TEST: write {tests[0]}/bbox/AP"
            )
    task, _, name = metric.partition("/")
    # "AP-<class>" can only be told from a mistake once there is an evaluation.
    if task not in ("bbox", "segm", "keypoints", "voc") or not name.startswith("AP"):
        raise InputError(
            f"RAMBO_TRAIN.BEST_METRIC {node.BEST_METRIC!r}: there are bbox/AP, bbox/AP50, "
            "bbox/AP75, bbox/AP-<class>, voc/AP50, and the same for segm and keypoints"
        )
