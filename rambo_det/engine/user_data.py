"""Registers a user's own datasets, checks all datasets of a run, and sets the config from them."""

import argparse
import os
import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.register import group_by_format, register_datasets, registered_classes
from ..errors import InputError
from .arguments import classes_from_args, registered_names
from .keys import Keys, dataset_names, get_key
from .run_data import read_data

#: Number of keypoints of COCO's persons; pycocotools has the tolerances of these keypoints.
_COCO_KEYPOINTS = 17


def register_data(
    cfg: Any, keys: Keys, args: argparse.Namespace, registered: Sequence[str] | None = None
) -> tuple[Sequence[str] | None, list[str]]:
    """Checks the datasets of a config of either kind; registers those of the command line.

    Returns the classes of the command line's datasets, None without any, and the names of those
    that the config uses. ``registered`` are their classes if they are registered already. Raises
    InputError for invalid data, or if the config names other datasets instead of a user's own.
    """
    train, test = dataset_names(cfg, keys.train_sets), dataset_names(cfg, keys.test_sets)
    own = registered_names(args)
    unused = [name for name in own if name not in (*train, *test)]
    for key, named in ((keys.train_sets, train), (keys.test_sets, test)):
        # A training may have no test dataset, and a user's own loader names its dataset itself.
        if unused and named and not args.eval_only and not set(own) & set(named):
            name = f"\"('{unused[0]}',)\"" if keys.separator == " " else unused[0]
            raise InputError(
                f"--register-... name {', '.join(own)}, but {key} is {', '.join(named)}: "
                f"add {key}{keys.separator}{name}"
            )
    trained = [] if args.eval_only and args.hold_out is None else train
    used = [
        *((keys.train_sets, name) for name in trained),
        *((keys.test_sets, name) for name in test),
    ]
    for key, name in used:
        if name not in own:
            check_dataset(key, name)
    noted: list[str] = []
    if args.eval_only:  # the classes are those of the run that trained the weights
        weights = get_key(cfg, keys.weights) if keys.is_set(keys.weights, args.opts) else ""
        noted = read_data(
            Path(weights).parent if weights else Path(get_key(cfg, keys.folder))
        ).classes
    classes = registered or (register_own(args, train, noted) if own else None)
    for option, given in (("--classes", args.classes), ("--split", args.split)):
        if given is not None and not own:
            raise InputError(f"{option} goes with --register-coco, --register-voc, --register-yolo")
    if not args.eval_only:
        known = [(name, registered_classes(name)) for _, name in used if registered_classes(name)]
        for key, name in used if known else ():
            check_same_classes(key, name, *known[0])
    return classes, [name for name in [*train, *test] if name in own]


def check_same_classes(option: str, name: str, other: str, was: Sequence[str]) -> None:
    """Raises InputError unless dataset ``name`` has the classes ``was`` of ``other`` in that order.

    A model numbers its classes: another order would exchange classes without an error. If the
    classes of one of the two are unknown, nothing is checked.
    """
    now = registered_classes(name)
    pairs = enumerate(zip_longest(was, now), 1) if was and now else ()
    for number, (old, new) in pairs:
        if old != new:
            old, new = ("none" if x is None else repr(x) for x in (old, new))
            # Only datasets that this package registers have this key; --classes sets their classes.
            is_own = MetadataCatalog.get(name).get("flagged_images") is not None
            remedy = f"--classes {shlex.quote(','.join(was))}" if is_own else "name other data"
            raise InputError(
                f"{option}: class {number} is {old} in {other} and {new} in {name}: both need the "
                f"same classes in the same order, {remedy}"
            )


def register_own(
    args: argparse.Namespace, training: Sequence[str] = (), noted: Sequence[str] = ()
) -> list[str]:
    """Registers the datasets of the command line; returns their classes.

    Without --classes and without a dataset in ``training``, the datasets get the classes ``noted``
    or, if these are empty, the classes of the datasets ``training``.
    """
    own, classes = registered_names(args), classes_from_args(args)
    train = [name for name in training if name in own]
    if classes is None and not train:
        classes = next(filter(None, [noted, *map(registered_classes, training)]), None)
    return register_datasets(
        **group_by_format(args.register), classes=classes, train=train or None, split=args.split
    )


def check_dataset(key: str, name: str) -> None:
    """Raises InputError, naming ``key``, unless the dataset is registered and its files exist."""
    if name not in DatasetCatalog.list():
        raise InputError(
            f"{key}: data set {name} is not registered: use --register-coco or its like"
        )
    # Detectron2 registers its datasets even if their files are missing. The package's own shapes
    # are drawn at first use.
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file") or metadata.get("dirname")
    if file and not name.startswith("rambo_shapes_") and not os.path.exists(file):
        raise InputError(
            f"{key}: {name} needs {file}, which does not exist: put it there, set "
            "DETECTRON2_DATASETS, or register your own data with --register-coco and the like"
        )


def check_masks_and_keypoints(name: str, masks: str = "", keypoints: str = "") -> None:
    """Raises InputError if a user's own dataset lacks masks or keypoints that the model needs.

    ``masks`` and ``keypoints`` say why the model needs them; empty: the model does not need them.
    """
    metadata = MetadataCatalog.get(name)
    if masks and (why := metadata.get("without_mask")):
        raise InputError(f"{masks}, but {why}: each object needs a 'segmentation', as COCO has it")
    if keypoints and (why := metadata.get("without_keypoints")):
        raise InputError(
            f"{keypoints}, but {why}: the category in its json needs 'keypoints', a list of their "
            "names, and each object x, y and visibility of all"
        )


def adapt_config(cfg: CfgNode, classes: Sequence[str], own: Sequence[str]) -> None:
    """Sets number of classes, mask format and number of keypoints from a user's own datasets.

    Raises InputError if the datasets lack what the model needs or differ in number of keypoints.
    """
    for node in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        node.NUM_CLASSES = len(classes)
    first = ""
    for name in own:
        metadata, model = MetadataCatalog.get(name), cfg.MODEL
        check_masks_and_keypoints(name, "MODEL.MASK_ON is True" * model.MASK_ON,
                    "MODEL.KEYPOINT_ON is True" * model.KEYPOINT_ON)  # fmt: skip
        if model.MASK_ON:
            # The default, polygon, cannot hold RLE; bitmask holds both.
            cfg.INPUT.MASK_FORMAT = metadata.get("mask_format", cfg.INPUT.MASK_FORMAT)
        if model.KEYPOINT_ON:
            node, number = model.ROI_KEYPOINT_HEAD, len(metadata.get("keypoint_names", ()))
            given = len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
            if given != number and (given or number != _COCO_KEYPOINTS):
                raise InputError(
                    f"TEST.KEYPOINT_OKS_SIGMAS must be {number} numbers, the tolerance of each key "
                    f"point of {name}, not {given}: COCO's default has {_COCO_KEYPOINTS}"
                )
            if first and number != node.NUM_KEYPOINTS:
                raise InputError(f"{name} has {number} key points, {first} {node.NUM_KEYPOINTS}")
            first, node.NUM_KEYPOINTS = first or name, number
