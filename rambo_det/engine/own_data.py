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
    """The data sets that ``--register-coco`` and ``--register-voc`` name."""
    return [name for name, *_ in [*args.register_coco, *args.register_voc]]


def check_own_trained_on(
    args: argparse.Namespace, key: str, training: Sequence[str], test: Sequence[str], remedy: str
) -> None:
    """Raises InputError where none of a user's own data are trained on and some are not used.

    What is found wrong later would be wrong with training data that nobody meant. ``remedy`` is how
    the command line gives ``key`` a training set, with {} in the place of its name.
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

    ``training`` names the data sets, of whatever origin, that the run trains on.
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
    # Detectron2 registers its sets whether their files are there or not; the package's own shapes
    # are drawn at first use.
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file") or metadata.get("dirname")
    if file and not name.startswith("rambo_shapes_") and not os.path.exists(file):
        raise InputError(
            f"{key}: {name} needs {file}, which does not exist: put it there, set "
            "DETECTRON2_DATASETS, or register your own data with --register-coco or --register-voc"
        )


def set_from_data(cfg: CfgNode, classes: Sequence[str], names: Sequence[str]) -> None:
    """Sets number of classes, format of masks and number of key points as one's own data have them.

    Raises InputError if a model with masks or key points has data without, if the numbers of key
    points differ, or if ``TEST.KEYPOINT_OKS_SIGMAS`` has not one tolerance for each.
    """
    for node in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        node.NUM_CLASSES = len(classes)
    first = ""
    for name in names:
        metadata = MetadataCatalog.get(name)
        if cfg.MODEL.MASK_ON:
            if where := metadata.get("without_mask"):
                raise InputError(
                    f"MODEL.MASK_ON is True, but {where} has no mask: give each object a "
                    "'segmentation' in COCO's format, or set MODEL.MASK_ON False"
                )
            # The default, polygon, cannot hold RLE; bitmask holds both.
            cfg.INPUT.MASK_FORMAT = metadata.get("mask_format", cfg.INPUT.MASK_FORMAT)
        if cfg.MODEL.KEYPOINT_ON:
            node, number = cfg.MODEL.ROI_KEYPOINT_HEAD, len(metadata.get("keypoint_names", ()))
            _check_keypoints(name, number, len(cfg.TEST.KEYPOINT_OKS_SIGMAS))
            if first and number != node.NUM_KEYPOINTS:
                raise InputError(f"{name} has {number} key points, {first} {node.NUM_KEYPOINTS}")
            first, node.NUM_KEYPOINTS = first or name, number


def _check_keypoints(name: str, number: int, tolerances: int) -> None:
    if number == 0:
        raise InputError(
            f"MODEL.KEYPOINT_ON is True, but {name} has no key points: the category in its json "
            "needs 'keypoints', a list of their names"
        )
    if tolerances != number and (tolerances or number != _COCO_KEYPOINTS):
        raise InputError(
            f"TEST.KEYPOINT_OKS_SIGMAS must be {number} numbers, the tolerance of each key point "
            f"of {name}, not {tolerances}: COCO's, which are the default, are of {_COCO_KEYPOINTS}"
        )
