"""Pascal VOC's average precision at IoU 0.5, per class, at the full precision of the scores."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, pascal_voc_evaluation
from detectron2.utils import comm

from ..data.voc import read_voc


def has_voc_annotations(dataset_name: str) -> bool:
    """Whether `VOCDetectionEvaluator` can evaluate this registered data set."""
    metadata = MetadataCatalog.get(dataset_name)
    return metadata.get("dirname") is not None and metadata.get("split") is not None


class VOCDetectionEvaluator(DatasetEvaluator):
    """VOC's AP50 of a data set in VOC layout, by Detectron2's `voc_eval`; for all processes.

    Detectron2's own PascalVOCDetectionEvaluator rounds scores to 3 decimals, which makes ties of
    most of them, reports no class by itself and cannot read the xml files of many tools. Here
    detections of equal score enter together, so that their order cannot change the result.

    Args:
        dataset_name: a data set whose metadata has `dirname`, `split` and `thing_classes`: one
            in VOC layout from `register_datasets` or Detectron2's `register_pascal_voc`. If its
            `year` is 2007, AP is that year's mean of 11 points.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._classes: list[str] = list(metadata.thing_classes)
        self._is_2007 = metadata.get("year") == 2007
        source = read_voc(dataset_name, metadata.dirname, metadata.split, check_images=False)
        # Detectron2 separates what it writes of a detection by spaces, which names may have.
        self._numbers = {image_id: str(number) for number, image_id in enumerate(source.images)}
        self._objects: dict[str, list[dict[str, Any]]] = {n: [] for n in self._numbers.values()}
        for item in source.annotations:
            x, y, width, height = item["bbox"]
            self._objects[self._numbers[item["image_id"]]].append(
                {
                    "name": source.categories[item["category_id"]],
                    "difficult": item["difficult"],
                    "bbox": [x + 1, y + 1, x + width, y + height],  # as VOC counts pixels
                }
            )
        self.reset()

    def reset(self) -> None:
        self._found: list[tuple[int, float, str]] = []  # class, score, line of Detectron2's file

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            fields = (found.pred_boxes.tensor, found.scores, found.pred_classes)
            for box, score, label in zip(*(field.tolist() for field in fields), strict=True):
                numbers = [score, box[0] + 1, box[1] + 1, *box[2:]]
                line = " ".join([self._numbers[image["image_id"]], *map(repr, numbers)])
                self._found.append((label, score, line))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """AP in percent: `{"voc": {"AP50": mean, "AP50-<class>": …}}`; `{}` but on process 0.

        A class without objects has nan and does not count in the mean.
        """
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return {}
        found = defaultdict(list)
        for label, score, line in (item for part in gathered for item in part):
            found[label].append((score, line))
        aps = {name: self._ap(name, found[k]) for k, name in enumerate(self._classes)}
        known = [ap for ap in aps.values() if not np.isnan(ap)]
        mean = float(np.mean(known)) if known else float("nan")
        return {"voc": {"AP50": mean, **{f"AP50-{name}": ap for name, ap in aps.items()}}}

    def _ap(self, name: str, found: list[tuple[float, str]]) -> float:
        objects = [item for items in self._objects.values() for item in items]
        if not any(item["name"] == name and not item["difficult"] for item in objects):
            return float("nan")
        with tempfile.TemporaryDirectory() as folder:
            detections, images = Path(folder, "detections.txt"), Path(folder, "images.txt")
            detections.write_text("\n".join(line for _, line in found))
            images.write_text("\n".join(self._objects))
            # Its reader of xml cannot do without <pose>, <truncated> and whole numbers.
            read = self._objects.__getitem__
            with mock.patch.object(pascal_voc_evaluation, "parse_rec", read):
                recall, precision, _ = pascal_voc_evaluation.voc_eval(
                    str(detections), "{}", str(images), name
                )
        scores = np.sort([score for score, _ in found])[::-1]
        last_of_tie = np.flatnonzero(np.diff(scores, append=-np.inf))
        curve = recall[last_of_tie], precision[last_of_tie]
        return 100 * float(pascal_voc_evaluation.voc_ap(*curve, self._is_2007))
