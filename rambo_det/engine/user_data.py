"""Registers a user's own datasets, checks all datasets of a run, and sets the config from them."""

import argparse
import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.register import group_by_format, register_datasets, registered_classes
from ..errors import InputError
from .arguments import (
    REGISTER,
    check_data_arguments,
    classes_from_args,
    classes_to_word,
    registered_names,
)
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
    own_names = registered_names(args)
    check_data_arguments(args)
    unused = [name for name in own_names if name not in (*train, *test)]
    for key, names in ((keys.train_sets, train), (keys.test_sets, test)):
        # A training may have no test dataset, and a user's own loader names its dataset itself.
        if unused and names and not args.eval_only and not set(own_names) & set(names):
            problem = f"none of the registered datasets ({', '.join(own_names)}) is in {key}"
            remedy = keys.setting(key, unused[0])
            raise InputError(f"{problem}, which is {', '.join(names)}: add {remedy}")
    trained = [] if args.eval_only and args.hold_out is None else train
    used = [(keys.train_sets, name) for name in trained] + [(keys.test_sets, name) for name in test]
    for key, name in used:
        if name not in own_names:
            check_dataset(key, name)
    # The classes of an evaluation are those of the run that trained the weights.
    folder = Path(get_key(cfg, keys.weights)).parent
    saved_classes = read_data(folder).classes if args.eval_only else []
    classes = registered or (register_own(args, train, saved_classes) if own_names else None)
    known = [(name, registered_classes(name)) for _, name in used if registered_classes(name)]
    for key, name in used if known and not args.eval_only else ():
        check_same_classes(key, name, *known[0])
    return classes, [name for name in [*train, *test] if name in own_names]


def check_same_classes(option: str, name: str, other: str, expected: Sequence[str]) -> None:
    """Raises InputError unless dataset ``name`` has the classes ``expected``, those of ``other``.

    A model numbers its classes: another order would exchange classes without an error. If the
    classes of one of the two are unknown, nothing is checked.
    """
    classes = registered_classes(name)
    pairs = enumerate(zip_longest(expected, classes), 1) if expected and classes else ()
    for number, (old, new) in pairs:
        if old != new:
            old, new = ("none" if x is None else repr(x) for x in (old, new))
            # Only datasets that this package registers have this key; --classes sets their classes.
            is_own = MetadataCatalog.get(name).get("flagged_images") is not None
            change = (
                f"--classes {shlex.quote(classes_to_word(expected))}"
                if is_own
                else "use other data"
            )
            remedy = f"both need the same classes in the same order: {change}"
            problem = f"class {number} is {old} in {other} and {new} in {name}"
            raise InputError(f"{option}: {problem}: {remedy}")


def register_own(
    args: argparse.Namespace, training: Sequence[str] = (), saved_classes: Sequence[str] = ()
) -> list[str]:
    """Registers the datasets of the command line; returns their classes.

    Without --classes and without a dataset in ``training``, the datasets get ``saved_classes`` or,
    if these are empty, the classes of the datasets ``training``.
    """
    own_names, classes = registered_names(args), classes_from_args(args)
    train = [name for name in training if name in own_names]
    if classes is None and not train:
        classes = next(filter(None, [saved_classes, *map(registered_classes, training)]), None)
    return register_datasets(
        **group_by_format(args.register), classes=classes, train=train or None, split=args.split
    )


def check_dataset(key: str, name: str) -> None:
    """Raises InputError, naming ``key``, unless the dataset is registered and its files exist."""
    if name not in DatasetCatalog.list():
        raise InputError(f"{key}: dataset {name} is not registered: register it with {REGISTER}")
    # Detectron2 registers datasets without their files. The shapes are drawn at their first use.
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file") or metadata.get("dirname")
    if file and not name.startswith("rambo_shapes_") and not PathManager.exists(file):
        remedy = f"set DETECTRON2_DATASETS to the folder of the datasets, or use {REGISTER}"
        raise InputError(f"{key}: {name} needs {file}, which does not exist: {remedy}")


def check_calibration(cfg: Any, keys: Keys) -> None:
    """Raises InputError unless a training can calibrate on the dataset that its config names."""
    key, train = keys.calibrate, dataset_names(cfg, keys.train_sets)
    data = get_key(cfg, key)
    if data == "train" and not train:
        problem = f"{key} train needs a training set, but {keys.train_sets} is empty"
        raise InputError(f"{problem}: give {key} the name of a dataset")
    if data not in ("off", "train"):
        check_dataset(key, data)
        for name in train[:1]:
            check_same_classes(key, data, name, registered_classes(name))


def check_masks_and_keypoints(names: Sequence[str], masks: str, keypoints: str) -> None:
    """Raises InputError if a user's own dataset lacks masks or keypoints that the model needs.

    ``masks`` and ``keypoints`` say why the model needs them; empty: the model does not need them.
    """
    for metadata in map(MetadataCatalog.get, names):
        if masks and (why := metadata.get("without_mask")):
            raise InputError(f"{masks}, but {why}: each annotation needs a 'segmentation'")
        if keypoints and (why := metadata.get("without_keypoints")):
            rule = "each annotation needs 'keypoints' (x, y, visibility of each)"
            raise InputError(
                f"{keypoints}, but {why}: the category needs 'keypoints' (names), {rule}"
            )


def adapt_config(cfg: CfgNode, classes: Sequence[str], own_names: Sequence[str]) -> None:
    """Sets number of classes, mask format and number of keypoints from a user's own datasets.

    Raises InputError if the datasets lack what the model needs.
    """
    model, num_sigmas = cfg.MODEL, len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = len(classes)
    masks = "MODEL.MASK_ON is True" if model.MASK_ON else ""
    keypoints = "MODEL.KEYPOINT_ON is True" if model.KEYPOINT_ON else ""
    check_masks_and_keypoints(own_names, masks, keypoints)
    for metadata in map(MetadataCatalog.get, own_names):
        if model.MASK_ON:
            # The default, polygon, cannot hold RLE; bitmask holds both.
            cfg.INPUT.MASK_FORMAT = metadata.get("mask_format", cfg.INPUT.MASK_FORMAT)
        if model.KEYPOINT_ON:
            number = len(metadata.keypoint_names)
            if num_sigmas != number and (num_sigmas or number != _COCO_KEYPOINTS):
                default = f"COCO's default applies to {_COCO_KEYPOINTS} keypoints only"
                need = f"{number} values, one per keypoint of {metadata.name}, but has {num_sigmas}"
                raise InputError(f"TEST.KEYPOINT_OKS_SIGMAS must have {need} ({default})")
            model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = number
