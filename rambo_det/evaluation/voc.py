"""Pascal VOC's average precision at IoU 0.5, per class, from scores that are not rounded."""

from collections import defaultdict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.voc import read_voc

_IOU = 0.5  # a right detection has a larger IoU


def has_voc_annotations(dataset_name: str) -> bool:
    """Returns whether `VOCDetectionEvaluator` can evaluate a registered dataset."""
    metadata = MetadataCatalog.get(dataset_name)
    return all(metadata.get(key) is not None for key in ("dirname", "split", "year"))


class VOCDetectionEvaluator(DatasetEvaluator):
    """An evaluator of VOC's AP50 for a dataset in VOC layout, over all processes.

    Detectron2's own PascalVOCDetectionEvaluator rounds scores to 3 decimals, which makes most of
    them equal. It reports no AP of single classes, and cannot read the xml files of many tools.
    This evaluator counts detections of equal score together: their order does not matter.

    Args:
        dataset_name: a dataset whose metadata has `dirname`, `split`, `year` and `thing_classes`,
            as VOC datasets from `register_datasets` and Detectron2's `register_pascal_voc` have. If
            the metadata's `year` is 2007, the AP is the 11-point mean of VOC2007.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._classes: list[str] = list(metadata.thing_classes)
        self._is_2007 = metadata.get("year") == 2007
        source = read_voc(dataset_name, metadata.dirname, metadata.split, check_images=False)
        # Class name -> image id -> objects.
        self._objects: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        for item in source.annotations:
            name = source.categories[item["category_id"]]
            self._objects[name][item["image_id"]].append(item)
        self.reset()

    def reset(self) -> None:
        self._found: list[tuple[int, float, Any, list[float]]] = []  # class, score, image, box

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            boxes = BoxMode.convert(found.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            fields = (found.pred_classes, found.scores, boxes)
            for label, score, box in zip(*(field.tolist() for field in fields), strict=True):
                self._found.append((label, score, image["image_id"], box))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns `{"voc": {"AP50": mean, "AP50-<class>": …}}` in percent; `{}` on processes > 0.

        The AP of a class without objects is nan and does not count in the mean.
        """
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return {}
        # The highest score first.
        found = sorted((item for part in gathered for item in part), key=lambda item: -item[1])
        aps = {
            name: self._ap(self._objects[name], [item[1:] for item in found if item[0] == k])
            for k, name in enumerate(self._classes)
        }
        known = [ap for ap in aps.values() if not np.isnan(ap)]
        mean = float(np.mean(known)) if known else float("nan")
        return {"voc": {"AP50": mean, **{f"AP50-{name}": ap for name, ap in aps.items()}}}

    def _ap(self, objects: dict[Any, Any], found: list[tuple[float, Any, list[float]]]) -> float:
        """Returns the AP of one class in percent. ``objects`` maps image ids to objects."""
        number = sum(not item["difficult"] for items in objects.values() for item in items)
        if not number:
            return float("nan")
        right, wrong = np.zeros((2, len(found)))
        matched = set()
        for row, (_, image, box) in enumerate(found):
            items = objects.get(image, ())
            ious = mask_util.iou([box], [item["bbox"] for item in items], [0] * len(items))
            best = int(np.argmax(ious)) if items else 0
            if not items or ious[0, best] <= _IOU:
                wrong[row] = 1
            elif not items[best]["difficult"]:
                (wrong if (image, best) in matched else right)[row] = 1
                matched.add((image, best))
        last_of_tie = np.flatnonzero(np.diff([score for score, *_ in found], append=-np.inf))
        hits, misses = np.cumsum(right)[last_of_tie], np.cumsum(wrong)[last_of_tie]
        precision = hits / np.maximum(hits + misses, 1)
        return 100 * float(voc_ap(hits / number, precision, self._is_2007))
