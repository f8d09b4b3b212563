"""Builds a checked yaml config from the command line arguments."""

import argparse
import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.data import build as data_build
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from ..data.register import hold_out, registered_classes
from ..data.shapes import register_shapes
from ..errors import InputError, one_line
from ..modeling.config_checks import check_architecture
from ..modeling.criterion import RamboCriterion
from ..modeling.scores import score_function
from ..paths import find_config
from .folder import set_last_checkpoint
from .keys import YAML, Keys, dataset_names, get_key, has_key, set_key
from .user_code import import_user_code, new_config
from .user_data import adapt_config, check_calibration, register_data

_REGISTRIES = {
    "META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "RPN.HEAD_NAME": modeling.RPN_HEAD_REGISTRY,
    "ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "ROI_KEYPOINT_HEAD.NAME": modeling.ROI_KEYPOINT_HEAD_REGISTRY,
}
_SAMPLERS = ["", "RepeatFactor", "RandomSubset"]
if hasattr(data_build, "_build_weighted_sampler"):  # Detectron2 v0.6 does not have these two
    _SAMPLERS += ["Weighted", "WeightedCategory"]
#: The values of keys that Detectron2 checks only after the run has its folder.
_CHOICES = {
    "DATALOADER.SAMPLER_TRAIN": [f"{name}TrainingSampler" for name in _SAMPLERS],
    "INPUT.RANDOM_FLIP": ["horizontal", "vertical", "none"],
}
#: The node that has the number of classes of an architecture.
_CLASS_NODES = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "RamboRetinaNet": "RETINANET",
}
#: The metrics of COCOEvaluator and VOCDetectionEvaluator.
_METRIC = re.compile(r"(?!keypoints/APs)(bbox|segm|keypoints)/AP(50|75|[sml]|-.+)?|voc/AP50(-.+)?")
_DEPTHS = (18, 34, 50, 101, 152)


def build_config(args: argparse.Namespace, registered: Sequence[str] | None = None) -> CfgNode:
    """Registers the datasets of the command line; returns the checked config of the run.

    ``registered`` are the classes of these datasets if they are registered already. Raises
    InputError for any error in the config, its keys or the data.
    """
    register_shapes()  # the quickstart's configs name these datasets
    cfg = merged_config(args)
    check_model(cfg)
    set_last_checkpoint(cfg, YAML, args)
    if not args.eval_only:
        check_training(cfg)
    classes, own_names = register_data(cfg, YAML, args, registered)
    if classes is not None:
        for key in ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"):
            value = get_key(cfg, key)
            if YAML.is_set(key, args.opts) and value != len(classes):
                problem = f"{key} is {value}, but the data have {len(classes)} classes"
                raise InputError(f"{problem}: remove this setting, it is set automatically")
        adapt_config(cfg, classes, own_names)
    if not args.eval_only and (node := _CLASS_NODES.get(cfg.MODEL.META_ARCHITECTURE)):
        key = f"MODEL.{node}.NUM_CLASSES"
        check_num_classes(key, get_key(cfg, key), cfg.DATASETS.TRAIN)
    if args.hold_out is not None:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = hold_out(cfg.DATASETS.TRAIN, args.hold_out)
        cfg.DATASETS.PROPOSAL_FILES_TEST = cfg.DATASETS.PROPOSAL_FILES_TRAIN
    if not args.eval_only:
        check_calibration(cfg, YAML)
    check_architecture(cfg)
    # Check MODEL.RAMBO before the run has a folder; the model would find its errors only later.
    RamboCriterion.from_cfg(cfg, num_classes=1, class_names=None)
    score_function(cfg.MODEL.RAMBO.SCORE)
    return cfg


def check_num_classes(key: str, num_classes: int, train: Sequence[str]) -> None:
    """Raises InputError if the training data have a class whose number is background's."""
    for name in train:
        if (number := len(registered_classes(name))) > num_classes:
            raise InputError(f"{key} is {num_classes}, but {name} has {number} classes")


def merged_config(args: argparse.Namespace) -> CfgNode:
    """Merges ``args.config_file`` and ``args.opts``; InputError if the file or a key is wrong."""
    import_user_code(args.imports)
    return read_config(find_config(args.config_file), args.opts)


def read_config(file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Merges a file and ``KEY VALUE`` pairs into the defaults; uses the CPU if there is no GPU.

    Raises InputError for an invalid file, key or value.
    """
    cfg = new_config()
    known = flat_config(cfg)
    for word in opts[::2]:
        if word.startswith("--"):
            raise InputError(f"options come before the config keys: {word}")
        # After one word too many or too few, the values stand in the positions of the keys.
        if word not in known:
            hint = _did_you_mean(word, known)
            raise InputError(f"expected KEY VALUE pairs, but {word!r} is not a config key{hint}")
    if len(opts) % 2:
        raise InputError(f"expected KEY VALUE pairs, but {opts[-1]!r} has no value")
    try:
        cfg.merge_from_file(file)
    except RecursionError:
        raise InputError(f"{file} cannot be used as a config: circular _BASE_ reference") from None
    except Exception as error:  # the file may not be yaml or a config, or have unknown keys
        message = one_line(error)
        if isinstance(error, (AttributeError, TypeError)):
            message = "it is not a yaml mapping such as 'MODEL: ...'"
        if file.endswith(".py"):
            message = "it is a LazyConfig, for tools/lazyconfig_train_net.py"
        if unknown := re.search(r"Non-existent config key: ([^\s']+)", message):
            message = f"unknown config key {unknown[1]}{_did_you_mean(unknown[1], known)}"
        raise InputError(f"{file} cannot be used as a config: {message}") from error
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        # yacs refuses an integer for a key whose default is a float.
        is_integer = isinstance(known[key], float) and text.lstrip("+-").isdigit()
        try:
            cfg.merge_from_list([key, f"{text}.0" if is_integer else text])
        except (ValueError, AssertionError) as error:
            message = one_line(error)
            if message.startswith("Type mismatch"):
                message = f"it must have the same type as its default, {known[key]!r}"
                if isinstance(known[key], tuple):
                    words = re.findall(r"[^\s'\"(),\[\]]+", text)
                    items = [w if re.fullmatch(r"-?[\d.]+", w) else repr(w) for w in words]
                    message = f'it must be a list: write "({", ".join(items)},)"'
            raise InputError(f"{key} {text}: {message}") from error
    pick_device(cfg, YAML, opts)
    return cfg


def flat_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a nested config by their dotted keys, as on the command line."""
    return {key.replace("/", "."): value for key, value in flatten_results_dict(cfg).items()}


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.upper(), list(known), 1)
    return f": did you mean {near[0]}?" if near else ""


def pick_device(cfg: Any, keys: Keys, opts: Sequence[str]) -> None:
    """Sets the CPU as device if a config of either kind asks for a GPU but torch finds none.

    Raises InputError if the command line asks for the GPU.
    """
    device = get_key(cfg, keys.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        if keys.is_set(keys.device, opts):
            raise InputError(f"{keys.device} {device}: torch finds no GPU on this machine: use cpu")
        set_key(cfg, keys.device, "cpu")


def check_model(cfg: CfgNode) -> None:
    """Raises InputError for an unknown part of the model or an invalid device name."""
    for key, registry in _REGISTRIES.items():
        name = get_key(cfg.MODEL, key)
        if name and name not in registry and name != "PrecomputedProposals":
            known = ", ".join(sorted(dict(registry)))
            raise InputError(f"MODEL.{key} {name!r} does not exist; available: {known}")
    if "resnet" in cfg.MODEL.BACKBONE.NAME and cfg.MODEL.RESNETS.DEPTH not in _DEPTHS:
        raise InputError(f"MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH} must be one of {_DEPTHS}")
    for setting, is_set in (
        ("another MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN"),
        ("MODEL.KEYPOINT_ON True", cfg.MODEL.KEYPOINT_ON),
        ("MODEL.LOAD_PROPOSALS True", cfg.MODEL.LOAD_PROPOSALS),
    ):
        if cfg.TEST.AUG.ENABLED and is_set:
            rule = "it needs a GeneralizedRCNN that has no keypoints and makes its own proposals"
            raise InputError(f"TEST.AUG.ENABLED True cannot be combined with {setting}: {rule}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r}: use cpu, cuda or cuda:1") from None


def check_training(cfg: CfgNode) -> None:
    """Raises InputError if the config's datasets and solver do not allow a training."""
    check_schedule(cfg, YAML)
    for key, values in _CHOICES.items():
        if (value := get_key(cfg, key)) not in values:
            raise InputError(f"{key} {value!r} does not exist; available: {', '.join(values)}")
    for key in ("SOLVER.BASE_LR", "RAMBO_TRAIN.CLS_WEIGHT"):
        if not 0 < get_key(cfg, key) < float("inf"):
            raise InputError(f"{key} must be > 0, got {get_key(cfg, key)}")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise InputError(f"DATALOADER.NUM_WORKERS must be >= 0, got {cfg.DATALOADER.NUM_WORKERS}")
    check_amp("SOLVER.AMP.ENABLED True", cfg.SOLVER.AMP.ENABLED, YAML.device, cfg.MODEL.DEVICE)
    check_best_metric(cfg, YAML, cfg.DATASETS.TEST)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # the run logs these warnings again
    part = "optimizer"
    try:
        optimizer = build_optimizer(cfg, nn.Linear(1, 1))
        part = f"LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}"
        build_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError) as error:
        raise InputError(f"SOLVER, {part}: {one_line(error)}") from error
    finally:
        logging.disable(disabled)


def check_schedule(cfg: Any, keys: Keys) -> None:
    """Raises InputError unless a config of either kind has training data and a valid schedule."""
    if has_key(cfg, keys.train_sets) and not dataset_names(cfg, keys.train_sets):
        raise InputError(f"{keys.train_sets} is empty: set {keys.setting(keys.train_sets, 'NAME')}")
    for key in (keys.max_iter, keys.batch_size, keys.checkpoint_period):
        value = get_key(cfg, key) if has_key(cfg, key) else 1
        if not isinstance(value, int) or value < 1:  # a LazyConfig does not check types
            raise InputError(f"{key} must be an integer >= 1, got {value!r}")


def check_amp(setting: str, enabled: bool, key: str, device: str) -> None:
    """Raises InputError, naming the ``setting``, for mixed precision without a GPU."""
    if enabled and not device.startswith("cuda"):
        raise InputError(f"{setting} needs a GPU, but {key} is {device}: set it to False")


def check_best_metric(cfg: Any, keys: Keys, tests: Sequence[str], own: bool = False) -> None:
    """Raises InputError if the keys of the best evaluation on datasets ``tests`` are invalid.

    ``own``: the evaluator is a user's own, whose metrics are known only after an evaluation.
    """
    names = (keys.keep_best, keys.metric, keys.patience, keys.eval_period)
    keep, metric, patience, period = (get_key(cfg, name) for name in names)
    for key, value in ((keys.patience, patience), (keys.eval_period, period)):
        if not isinstance(value, int):  # a LazyConfig does not check types
            raise InputError(f"{key} must be an integer, got {value!r}")
    if patience < 0:
        raise InputError(f"{keys.patience} must be >= 0, got {patience}")
    if period < 1 and patience:
        raise InputError(f"{keys.patience} needs periodic evaluation: set {keys.eval_period} > 0")
    if period < 1 or not (keep or patience):
        return
    if not tests:
        raise InputError(f"{keys.test_sets} is empty: set {keys.setting(keys.test_sets, 'NAME')}")
    dataset, _, rest = str(metric).partition("/")
    if len(tests) > 1 and dataset not in tests:
        hint = f"prefix the metric with a dataset name, e.g. {tests[0]}/bbox/AP"
        raise InputError(f"{keys.metric} {metric!r}: with several test datasets, {hint}")
    # Whether the class of "AP-<class>" exists is known only after an evaluation.
    if not own and not _METRIC.fullmatch(rest if len(tests) > 1 else str(metric)):
        valid = "bbox/, segm/, keypoints/ with AP, AP50, AP75, APs, APm, APl, AP-<class>; voc/AP50"
        raise InputError(f"{keys.metric} {metric!r}: unknown metric; valid: {valid}[-<class>]")
