"""Values of a config over which Detectron2 stumbles only once a run has begun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from .best import YAML_KEYS, BestKeys

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
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # they come again when the run builds its own
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))
    except (ValueError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}: {message}"
        ) from error
    finally:
        logging.disable(disabled)


def _check_following(cfg: CfgNode) -> None:
    node = cfg.RAMBO_TRAIN
    if node.IMAGES < 0:
        raise InputError(f"RAMBO_TRAIN.IMAGES must be >= 0, got {node.IMAGES}")
    if not 0 < node.CLS_WEIGHT < float("inf"):
        raise InputError(f"RAMBO_TRAIN.CLS_WEIGHT must be > 0, got {node.CLS_WEIGHT}")
    check_best(
        node.KEEP_BEST, node.BEST_METRIC, node.PATIENCE, cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST,
        YAML_KEYS,
    )  # fmt: skip


def check_best(
    keep: bool, metric: str, patience: int, period: int, tests: Sequence[str], keys: BestKeys
) -> None:
    """Raises InputError if the best evaluation cannot be known from such values.

    Args:
        keep, metric, patience, period: of :class:`.best.BestModel`; a period < 1: never.
        tests: names of the data sets that are evaluated on.
        keys: what the config calls them.
    """
    for key, value in ((keys.patience, patience), (keys.period, period)):
        if not isinstance(value, int):  # a LazyConfig may hold anything
            raise InputError(f"{key} must be an integer, got {value!r}")
    if patience < 0:
        raise InputError(f"{keys.patience} must be >= 0, got {patience}")
    if period < 1:
        if patience:
            raise InputError(
                f"{keys.patience} needs evaluations to wait for: set {keys.period}, which "
                f"is {period}, to a number of iterations"
            )
        return
    if not (keep or patience):
        return
    if not tests:
        raise InputError(f"{keys.tests} is empty: name a data set to evaluate on, ('NAME',)")
    task, _, name = str(metric).partition("/")
    if len(tests) > 1:
        if task not in tests:
            raise InputError(
                f"{keys.metric} {metric!r} does not say on which of the data "
                f"sets of {keys.tests}: write {tests[0]}/bbox/AP"
            )
        task, _, name = name.partition("/")
    # "AP-<class>" can only be told from a mistake once there is an evaluation.
    if task not in ("bbox", "segm", "keypoints", "voc") or not name.startswith("AP"):
        raise InputError(
            f"{keys.metric} {metric!r}: there are bbox/AP, bbox/AP50, "
            "bbox/AP75, bbox/AP-<class>, voc/AP50, and the same for segm and keypoints"
        )
