"""From command line arguments to a checked, frozen config."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import add_rambo_config
from ..config_files import find_config
from ..data.holdout import hold_out
from ..data.register import register_datasets
from ..errors import InputError
from ..modeling.config_checks import check_architecture, resolve_rpn
from ..modeling.criterion import RamboCriterion
from ..modeling.scores import score_function
from .checkpointer import earlier_config, earlier_seed
from .keypoints import set_keypoints
from .masks import set_masks
from .saved import read_data
from .seeds import run_seed
from .values import check_model, check_training


def build_config(args: argparse.Namespace, registered: Sequence[str] | None = None) -> CfgNode:
    """Registers the data sets of the command line and gives the config of the run.

    Args:
        args: ``config_file``, ``opts``, ``register_coco``, ``register_voc``, ``classes``,
            ``hold_out``.
        registered: the classes of these data sets if they are registered already, which
            Detectron2's catalogs take only once.

    Raises:
        InputError: whatever is wrong with config, keys or data.
    """
    cfg = merged_config(args)
    check_own_trained_on(
        args, "DATASETS.TRAIN", cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, "DATASETS.TRAIN \"('{}',)\""
    )
    pick_device(cfg)
    check_model(cfg)
    if not getattr(args, "eval_only", False):
        check_training(cfg)
    own = {name for name, *_ in [*args.register_coco, *args.register_voc]}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in own:
                check_dataset(f"DATASETS.{key}", name)
    classes = registered or register_own(args, cfg.DATASETS.TRAIN)
    if classes is not None:
        for node in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
            node.NUM_CLASSES = len(classes)
        used = [n for key in ("TRAIN", "TEST") for n in cfg.DATASETS[key] if n in own]
        set_masks(cfg, used)
        set_keypoints(cfg, used)
    if args.hold_out is not None:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = hold_out(cfg.DATASETS.TRAIN, args.hold_out)
    check_architecture(cfg)
    resolve_rpn(cfg)
    RamboCriterion.from_cfg(cfg, num_classes=1, class_names=None)  # checks the ranges
    score_function(cfg.MODEL.RAMBO.SCORE)
    cfg.freeze()
    return cfg


def merged_config(args: argparse.Namespace) -> CfgNode:
    """The config as file and command line have it, before data and model are looked at.

    Args:
        args: ``config_file``, ``opts``.

    Raises:
        InputError: the file or a key is wrong.
    """
    cfg = get_cfg()
    add_rambo_config(cfg)
    merge(cfg, find_config(args.config_file), args.opts)
    return cfg


def merge(cfg: CfgNode, file: str, opts: list[str]) -> None:
    """Merges a file, then ``KEY VALUE`` pairs; raises InputError for what does not fit."""
    known = flat_config(cfg)
    for word in opts[::2]:
        if word.startswith("--"):
            raise InputError(f"options come before the config keys: {word}")
        # A word too many or too few makes keys of the values behind it.
        if len(opts) % 2 and word not in known:
            raise InputError(
                f"config keys come as KEY VALUE pairs, {word!r} is no config key"
                f"{_did_you_mean(word, known)}"
            )
    if len(opts) % 2:
        raise InputError(f"config keys come as KEY VALUE pairs, {opts[-1]!r} has no value")
    try:
        cfg.merge_from_file(file)
    except (KeyError, ValueError, AssertionError, yaml.YAMLError, OSError) as error:
        message = _one_line(error)
        unknown = re.fullmatch(r"Non-existent config key: (\S+)", message)
        if unknown:
            message += _did_you_mean(unknown[1], known)
        raise InputError(f"{file}: {message}") from error
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise InputError(f"unknown config key {key}{_did_you_mean(key, known)}")
        try:
            cfg.merge_from_list([key, _as_float(known[key], value)])
        except (ValueError, AssertionError) as error:
            raise InputError(f"{key} {value}: {_one_line(error)}") from error


def flat_config(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Each key of a config, as the command line names it, and its value."""
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, dict):  # a CfgNode too
            found.update(flat_config(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.upper(), list(known), 1)
    return f": did you mean {near[0]}?" if near else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def _as_float(current: Any, value: str) -> str:
    """An integer for a key that holds a float, which yacs refuses, as a float."""
    if isinstance(current, float) and value.lstrip("+-").isdigit():
        return f"{value}.0"
    return value


def pick_device(cfg: CfgNode) -> None:
    """The CPU, where the config asks for a GPU and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def check_own_trained_on(
    args: argparse.Namespace, key: str, training: Sequence[str], test: Sequence[str], remedy: str
) -> None:
    """Raises InputError where none of a user's own data are trained on and some are not used.

    To train on a set of Detectron2's and evaluate on one's own is no mistake. With a set more it is
    one, and what is found wrong later is wrong with training data that nobody meant.

    Args:
        args: ``register_coco``, ``register_voc``, ``eval_only``.
        key: of the config, that names the training sets.
        training, test: names of the data sets of the run.
        remedy: how the command line names a training set, with {} in the place of its name.
    """
    own = [name for name, *_ in [*args.register_coco, *args.register_voc]]
    unused = [name for name in own if name not in test]
    if unused and not args.eval_only and not set(own) & set(training):
        raise InputError(
            f"--register-coco/--register-voc name {', '.join(own)}, but {key} is "
            f"{', '.join(training) or 'empty'}: add {remedy.format(unused[0])}"
        )


def register_own(args: argparse.Namespace, training: Sequence[str]) -> list[str] | None:
    """Registers the data sets of the command line; returns their classes, None if there are none.

    Args:
        args: ``register_coco``, ``register_voc``, ``classes``.
        training: names of the data sets, of whatever origin, that the run trains on.
    """
    own = [name for name, *_ in [*args.register_coco, *args.register_voc]]
    if not own:
        if args.classes is not None:
            raise InputError("--classes goes with --register-coco or --register-voc")
        return None
    for name in own:
        if name in DatasetCatalog.list():
            raise InputError(f"data set {name} is registered already: choose another name")
    names = [n.strip() for n in args.classes.split(",")] if args.classes is not None else None
    train = [name for name in training if name in own]
    if names is None and not train:
        # Evaluation of a model that was trained on a set of Detectron2's own: its classes.
        for name in training:
            names = names or MetadataCatalog.get(name).get("thing_classes")
    return register_datasets(args.register_coco, args.register_voc, names, train or None)


def check_dataset(key: str, name: str) -> None:
    """Raises InputError, naming ``key``, unless the data set is registered and its files exist."""
    if name not in DatasetCatalog.list():
        raise InputError(
            f"{key}: data set {name} is not registered: "
            "name it with --register-coco or --register-voc"
        )
    # Sets of Detectron2 that are registered before their files are there; the package's own
    # shapes are drawn at first use.
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file") or metadata.get("dirname")
    if file and not name.startswith("rambo_shapes_") and not os.path.exists(file):
        raise InputError(
            f"{key}: {name} needs {file}, which does not exist: put it there, set "
            "DETECTRON2_DATASETS, or register your own data with --register-coco or --register-voc"
        )


def prepare_output(cfg: CfgNode, resume: bool, fresh: bool) -> Path | None:
    """Makes sure that a training overwrites no other one.

    Returns:
        Where an earlier run was moved to, if ``fresh`` asked for that and there was one.

    Raises:
        InputError: the folder holds a run and neither ``resume`` nor ``fresh`` is given, or
            ``resume`` is and that run is of another model or of other classes.
    """
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR is empty: name a folder")
    folder = Path(cfg.OUTPUT_DIR)
    if resume:
        _check_same_model(cfg, folder)
        check_same_classes("--resume", folder, cfg.DATASETS.TRAIN[:1])
    return prepare_folder(folder, resume, fresh, "OUTPUT_DIR FOLDER")


def make_output(folder: Path, option: str) -> None:
    """Makes a folder where there is none; InputError, with the option that named it, if it cannot
    be made or nothing can be written there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} {folder} is not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be made: {error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option} {folder} cannot be written: change its rights or name another")


def prepare_folder(folder: Path, resume: bool, fresh: bool, remedy: str) -> Path | None:
    """As :func:`prepare_output`; ``remedy`` is how the command line names another folder."""
    make_output(folder, "OUTPUT_DIR")
    files = [folder / name for name in ("last_checkpoint", "metrics.json")]
    # A run that ended before its first iteration leaves an empty one.
    if resume or not any(file.is_file() and file.stat().st_size for file in files):
        return None
    if not fresh:
        raise InputError(
            f"OUTPUT_DIR {folder} holds another run: --resume goes on with it, --fresh sets it "
            f"aside, or name another folder with {remedy}"
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def with_seed(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config with the SEED of the run, >= 0: written down, so that it can be gone on with.

    A SEED on the command line comes first, then that of the run in OUTPUT_DIR if this one goes on
    with it, then the config's; -1 there means any.

    Args:
        args: ``opts``, ``resume``.

    Raises:
        InputError: ``resume``, and the last checkpoint cannot be read.
    """
    earlier = None
    if comm.is_main_process():
        earlier = earlier_seed(cfg.OUTPUT_DIR, args.resume)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = run_seed(cfg.SEED, None if "SEED" in args.opts[::2] else earlier)
    cfg.freeze()
    return cfg


def _check_same_model(cfg: CfgNode, folder: Path) -> None:
    earlier = earlier_config(str(folder))
    for key in ("META_ARCHITECTURE", "BACKBONE.NAME", "ROI_HEADS.NAME", "ROI_HEADS.NUM_CLASSES",
                "PROPOSAL_GENERATOR.NAME", "RETINANET.NUM_CLASSES", "RESNETS.DEPTH"):  # fmt: skip
        was, now = earlier.get("MODEL", {}), cfg.MODEL
        for part in key.split("."):
            was, now = (was or {}).get(part), now[part]
        if was is not None and was != now:
            raise InputError(f"--resume: MODEL.{key} is {now!r}, the run in {folder} has {was!r}")


def check_same_classes(option: str, folder: Path, names: Iterable[str]) -> None:
    """Raises InputError unless the data have the classes of the run in the folder, in its order.

    A model has their number alone: under other names it would go on without a word.

    Args:
        option: what goes on with the run, for the message.
        folder: of the run; one without ``data.json`` is not looked at.
        names: of data sets, which are registered.
    """
    was = read_data(folder).classes
    for name in names:
        now = list(MetadataCatalog.get(name).get("thing_classes") or ())
        if not was or not now or was == now:
            continue
        for number, (old, new) in enumerate(zip_longest(was, now), 1):
            if old != new:
                raise InputError(
                    f"{option}: class {number} is {_quoted(old)} in the run in {folder} and "
                    f"{_quoted(new)} in {name}: give the run's classes, in its order, with "
                    f"--classes {shlex.quote(','.join(was))}"
                )


def _quoted(name: str | None) -> str:
    return "none" if name is None else repr(name)
