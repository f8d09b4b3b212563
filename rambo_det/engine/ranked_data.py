"""A data set on which a detector's ranking is looked at."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from ..data.register import by_format, register_datasets
from ..errors import InputError
from ..evaluation.ranking import RankedClass, rank_detections
from .detector import Detector
from .own_data import check_dataset
from .saved import SavedData, load_truth


class RankedData:
    """Images and objects of a data set.

    Args:
        name: of the data set; None: the first that the detector's config evaluates on.
        detector: whose classes the data set must have.
        saved: where the data of the detector's training are, if they were its own.
        args: ``register``, ``split``, ``classes``: data that the command line names.

    Attributes:
        name: of the data set.
        records: its images, in Detectron2's format.
        truth: their annotations, as pycocotools reads them.
        classes: their names.

    Raises:
        InputError: there is no such data set, or it is not usable.
    """

    def __init__(
        self, name: str | None, detector: Detector, saved: SavedData, args: argparse.Namespace
    ) -> None:
        if name is None and not detector.datasets:
            raise InputError("DATASETS.TEST is empty: name a data set with --dataset")
        self.name = name or detector.datasets[0]
        classes = detector.metadata.get("thing_classes")
        given = [n.strip() for n in args.classes.split(",")] if args.classes else classes
        if args.register:
            register_datasets(**by_format(args.register), classes=given, split=args.split)
        if self.name not in DatasetCatalog.list():
            known = [item for item in saved.register if item[1] == self.name]
            register_datasets(**by_format(known), classes=given)
        check_dataset("--dataset", self.name)
        self.records: list[dict[str, Any]] = DatasetCatalog.get(self.name)
        metadata = MetadataCatalog.get(self.name)
        file, names = metadata.get("json_file"), metadata.get("thing_classes")
        if not file:
            raise InputError(
                f"--dataset {self.name} has no annotations in COCO's format: register its folder "
                "with --register-voc"
            )
        if classes and list(names) != list(classes):
            raise InputError(
                f"--dataset {self.name} has the classes {', '.join(names)}, the detector "
                f"{', '.join(classes)}"
            )
        self.truth = load_truth(file)
        self.classes: list[str] = list(names)
        own = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        self._category_ids = {index: number for number, index in own.items()}
        self._files = {record["image_id"]: record["file_name"] for record in self.records}

    def detect(self, detector: Detector) -> list[dict[str, Any]]:
        """The detections in all images, in COCO's result format."""
        results: list[dict[str, Any]] = []
        for record in tqdm(self.records, desc="detect", unit="image", disable=None):
            found = detector(read_image(record["file_name"], format="BGR"))
            items = instances_to_coco_json(found, record["image_id"])
            results += [
                {**item, "category_id": self._category_ids[item["category_id"]]} for item in items
            ]
        return results

    def rank(self, results: list[dict[str, Any]], iou: float) -> list[RankedClass]:
        """The ranking of each class, see :func:`..evaluation.ranking.rank_detections`."""
        return rank_detections(self.truth, results, iou)

    def look(self, name: str) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
        """What shows an image, ``(H, W, 3)`` uint8 RGB, and the boxes of the class in it."""
        (number,) = self.truth.getCatIds(catNms=[name])

        def look(image_id: Any) -> tuple[np.ndarray, np.ndarray]:
            there = self.truth.imgToAnns.get(image_id, ())
            boxes = [item["bbox"] for item in there if item["category_id"] == number]
            return read_image(self._files[image_id], format="RGB"), np.array(boxes).reshape(-1, 4)

        return look
