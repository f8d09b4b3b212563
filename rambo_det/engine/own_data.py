"""The data sets of a run: a user's own are registered, all are checked, the config follows them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.register import register_datasets
from ..errors import InputError

#: How many key points COCO's persons have, for which pycocotools brings the tolerances.
_COCO_KEYPOINTS = 17


def own_names(args: argparse.Namespace) -> list[str]:
    """The data sets that the command line registers."""
    return [name for name, *_ in [*args.register_coco, *args.register_voc]]


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
    own = own_names(args)
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
    own = own_names(args)
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


def set_from_data(cfg: CfgNode, classes: Sequence[str], names: Sequence[str]) -> None:
    """Sets what a yaml config has to have as a user's own data have it.

    The number of classes; of a model with masks the format, bitmask where the data have RLE; of one
    with key points their number.

    Args:
        cfg: changed in place.
        classes: of the data.
        names: of the data sets that are the user's own.

    Raises:
        InputError: an object has no mask; a set has no key points, or another number than the
            first, or ``TEST.KEYPOINT_OKS_SIGMAS`` has no tolerance for each.
    """
    for node in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        node.NUM_CLASSES = len(classes)
    metadata = {name: MetadataCatalog.get(name) for name in names}
    for data in metadata.values() if cfg.MODEL.MASK_ON else ():
        if where := data.get("without_mask"):
            raise InputError(
                f"MODEL.MASK_ON is True, but {where} has no mask: give each object a "
                "'segmentation' in COCO's format, or set MODEL.MASK_ON False"
            )
        # The default, polygon, cannot hold RLE; bitmask holds both.
        cfg.INPUT.MASK_FORMAT = data.get("mask_format", cfg.INPUT.MASK_FORMAT)
    if cfg.MODEL.KEYPOINT_ON:
        _set_keypoints(cfg, {k: len(m.get("keypoint_names", ())) for k, m in metadata.items()})


def _set_keypoints(cfg: CfgNode, numbers: dict[str, int]) -> None:
    given = len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    for name, number in numbers.items():
        first = next(iter(numbers))
        if number == 0:
            raise InputError(
                f"MODEL.KEYPOINT_ON is True, but {name} has no key points: the category in its "
                "json needs 'keypoints', a list of their names"
            )
        if number != numbers[first]:
            raise InputError(f"{name} has {number} key points, {first} {numbers[first]}")
        if given != number and (given or number != _COCO_KEYPOINTS):
            raise InputError(
                f"TEST.KEYPOINT_OKS_SIGMAS must be {number} numbers, the tolerance of each key "
                f"point of {name}, not {given}: COCO's, which are the default, are of "
                f"{_COCO_KEYPOINTS}"
            )
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = number
