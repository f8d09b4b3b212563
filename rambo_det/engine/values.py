"""Values of a config over which Detectron2 stumbles only once a run has begun."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from ..errors import InputError
from .keys import YAML, Keys, value

_REGISTRIES = {
    "META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
}
_DEPTHS = (18, 34, 50, 101, 152)
_LEAST = {"SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 1, "SOLVER.CHECKPOINT_PERIOD": 1}
_LEAST |= {"RAMBO_TRAIN.IMAGES": 0}


def check_model(cfg: CfgNode) -> None:
    """Raises InputError for a part of the model, or a device, that does not exist."""
    for key, registry in _REGISTRIES.items():
        name = value(cfg.MODEL, key)
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
    for key, least in _LEAST.items():
        if value(cfg, key) < least:
            raise InputError(f"{key} must be >= {least}, got {value(cfg, key)}")
    for key in ("SOLVER.BASE_LR", "RAMBO_TRAIN.CLS_WEIGHT"):
        if not 0 < value(cfg, key) < float("inf"):
            raise InputError(f"{key} must be > 0, got {value(cfg, key)}")
    check_amp("SOLVER.AMP.ENABLED True", cfg.SOLVER.AMP.ENABLED, YAML.device, cfg.MODEL.DEVICE)
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError("TEST.AUG.ENABLED True: Detectron2 augments in tests for R-CNNs alone")
    check_best(cfg, YAML, cfg.DATASETS.TEST)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # they come again when the run builds its own
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))
    except (ValueError, AssertionError) as error:
        name, message = cfg.SOLVER.LR_SCHEDULER_NAME, " ".join(str(error).split())
        raise InputError(f"SOLVER.LR_SCHEDULER_NAME {name}: {message}") from error
    finally:
        logging.disable(disabled)


def check_amp(asked: str, enabled: bool, key: str, device: str) -> None:
    """Raises InputError for mixed precision without a GPU, where ``asked`` asks for it."""
    if enabled and not device.startswith("cuda"):
        raise InputError(f"{asked} needs a GPU, and {key} is {device}: set it to False")


def check_best(cfg: Any, keys: Keys, tests: Sequence[str]) -> None:
    """Raises InputError if a config of either kind, which is evaluated on the data sets ``tests``,
    does not tell which evaluation is the best."""
    keep, metric, patience, period = (
        value(cfg, key) for key in (keys.keep, keys.metric, keys.patience, keys.period)
    )
    for key, given in ((keys.patience, patience), (keys.period, period)):
        if not isinstance(given, int):  # a LazyConfig may hold anything
            raise InputError(f"{key} must be an integer, got {given!r}")
    if patience < 0:
        raise InputError(f"{keys.patience} must be >= 0, got {patience}")
    if period < 1 and patience:
        raise InputError(f"{keys.patience} needs evaluations to wait for: set {keys.period}")
    if period < 1 or not (keep or patience):
        return
    if not tests:
        raise InputError(f"{keys.test} is empty: name a data set to evaluate on, ('NAME',)")
    task, _, name = str(metric).partition("/")
    if len(tests) > 1:
        if task not in tests:
            raise InputError(
                f"{keys.metric} {metric!r}: on which data set? write {tests[0]}/bbox/AP"
            )
        task, _, name = name.partition("/")
    # "AP-<class>" can only be told from a mistake once there is an evaluation.
    if task not in ("bbox", "segm", "keypoints", "voc") or not name.startswith("AP"):
        raise InputError(
            f"{keys.metric} {metric!r}: there are bbox/AP, bbox/AP50, bbox/AP75, bbox/AP-<class>, "
            "voc/AP50, and the same for segm and keypoints"
        )
