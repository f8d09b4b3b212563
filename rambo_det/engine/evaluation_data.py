"""A dataset on which a detector's ranking is examined."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from ..data.register import group_by_format, register_datasets, registered_classes
from ..errors import InputError
from .arguments import registered_names
from .detector import Detector, category_ids
from .run_data import RunData
from .saved_model import ground_truth_of
from .user_data import check_dataset, check_same_classes, register_own


def register_for(
    detector: Detector, names: Sequence[str | None], args: argparse.Namespace, saved: RunData
) -> None:
    """Registers the datasets of the command line, and those of ``names`` that the run had.

    They get the classes of --classes or of the detector. Raises InputError if the command line has
    datasets, but none of ``names``, or if the class names of the detector are unknown.
    """
    own_names, classes = registered_names(args), detector.metadata.get("thing_classes") or ()
    if own_names and not set(own_names) & set(names):
        problem = f"none of the registered datasets ({', '.join(own_names)}) is used"
        raise InputError(f"{problem}: add --dataset {own_names[0]}")
    if not detector.metadata.get("has_names", True):
        remedy = "name them with --classes, in the order of the model's outputs"
        raise InputError(f"the class names of the detector are unknown: {remedy}")
    if own_names:
        register_own(args, saved_classes=classes)
    for name in names:
        locations = [item for item in saved.register if item[1] == name]
        if locations and name not in DatasetCatalog.list():
            register_datasets(**group_by_format(locations), classes=classes)


class EvaluationData:
    """Images and annotations of a dataset, which must have the classes of the detector.

    Args:
        name: name of the dataset; None: the first one that the detector's config evaluates on.
        option: the option that names the dataset, for error messages.

    Attributes:
        name, classes: name and class names of the dataset.
        records: its images, in Detectron2's format.
        truth: its annotations, as pycocotools reads them.

    Raises InputError if the dataset does not exist or is not usable.
    """

    def __init__(self, name: str | None, detector: Detector, option: str = "--dataset") -> None:
        if name is None and not detector.datasets:
            raise InputError("the config has no test dataset: name a dataset with --dataset")
        self.name = name or detector.datasets[0]
        check_dataset(option, self.name)
        self.records: list[dict[str, Any]] = DatasetCatalog.get(self.name)
        self.truth = ground_truth_of(self.name)
        self.classes = registered_classes(self.name)
        expected = detector.metadata.get("thing_classes") or ()
        check_same_classes(option, self.name, "the detector", expected)
        self._category_ids = category_ids(MetadataCatalog.get(self.name))
        self._files = {record["image_id"]: record["file_name"] for record in self.records}

    def detect(self, detector: Detector) -> list[dict[str, Any]]:
        """Returns the detections in all images, in COCO's result format."""
        results: list[dict[str, Any]] = []
        for record in tqdm(self.records, desc="detect", unit="image", disable=None):
            instances = detector(read_image(record["file_name"], format="BGR"))
            for item in instances_to_coco_json(instances, record["image_id"]):
                label = item["category_id"]
                results.append({**item, "category_id": self._category_ids.get(label, label)})
        return results

    def look(self, name: str, image_id: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, ``(H, W, 3)`` uint8 RGB, and its boxes of the class ``name``."""
        ids = self.truth.getAnnIds(imgIds=[image_id], catIds=self.truth.getCatIds(catNms=[name]))
        boxes = np.array([item["bbox"] for item in self.truth.loadAnns(ids)]).reshape(-1, 4)
        return read_image(self._files[image_id], format="RGB"), boxes
