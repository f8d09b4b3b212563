"""Pascal VOC's average precision at IoU 0.5, per class, at the full precision of the scores.

Detectron2's own PascalVOCDetectionEvaluator rounds scores to 3 decimals, which makes ties of most
of them, and reports no class by itself.
"""

from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torchvision.ops import box_iou

from rambo_det.data.catalog import DataSource
from rambo_det.data.voc import parse_voc

IOU_THRESHOLD = 0.5


def average_precision(
    scores: np.ndarray, correct: np.ndarray, positives: int, use_07_metric: bool = False
) -> float:
    """Average precision of one ranked list.

    Detections of equal score enter together, so their order cannot change the result.

    Args:
        scores: (N,) float.
        correct: (N,) bool.
        positives: number of objects that could have been found.
        use_07_metric: the mean of 11 points of VOC 2007 instead of the area under the curve
            (VOC 2010 and later).

    Returns:
        A number in 0..1; nan where there are no positives.
    """
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    found = np.cumsum(correct[order])[last_of_tie]
    recall = found / positives
    precision = found / (last_of_tie + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if use_07_metric:
        points = [envelope[recall >= t].max(initial=0.0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(points))
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def has_voc_annotations(dataset_name: str) -> bool:
    """Whether `VOCDetectionEvaluator` can evaluate this registered data set."""
    metadata = MetadataCatalog.get(dataset_name)
    return metadata.get("dirname") is not None and metadata.get("split") is not None


class VOCDetectionEvaluator(DatasetEvaluator):
    """VOC's AP50 of a data set in VOC layout; call it from all processes.

    As the VOC devkit does: a detection belongs to the object of its class that it overlaps most,
    counts as right if that overlap is above 0.5 and no higher score took the object, and is left
    out if the object is marked `difficult`.

    Args:
        dataset_name: a data set whose metadata has `dirname`, `split` and `thing_classes`: one
            from `register_voc` or Detectron2's `register_pascal_voc`.
        use_07_metric: see `average_precision`; by default whether the metadata's year is 2007.
    """

    def __init__(self, dataset_name: str, use_07_metric: bool | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._classes: list[str] = list(metadata.thing_classes)
        year = metadata.get("year", 2012)
        self._use_07_metric = year == 2007 if use_07_metric is None else use_07_metric
        source = parse_voc(dataset_name, metadata.dirname, metadata.split, check_images=False)
        self._objects = _objects_by_class(source)
        self.reset()

    def reset(self) -> None:
        self._detections: list[tuple[Any, torch.Tensor, np.ndarray, np.ndarray]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            boxes = found.pred_boxes.tensor.double()
            scores, classes = found.scores.double().numpy(), found.pred_classes.numpy()
            self._detections.append((image["image_id"], boxes, scores, classes))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """AP in percent: `{"voc": {"AP50": mean, "AP50-<class>": …}}`; `{}` but on process 0.

        A class without objects has nan and does not count in the mean.
        """
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return {}
        detections = [item for part in gathered for item in part]
        result = {}
        for index, name in enumerate(self._classes):
            result[f"AP50-{name}"] = 100 * self._class_ap(detections, index)
        known = [value for value in result.values() if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        return {"voc": {"AP50": mean, **result}}

    def _class_ap(self, detections: list[Any], index: int) -> float:
        objects = self._objects.get(self._classes[index], {})
        positives = sum(int((~difficult).sum()) for _, difficult in objects.values())
        all_scores, all_correct = [np.zeros(0)], [np.zeros(0, bool)]
        for image_id, boxes, scores, classes in detections:
            chosen = np.flatnonzero(classes == index)
            scores, boxes = scores[chosen], boxes[chosen]
            correct = np.zeros(len(chosen), bool)
            if image_id in objects and len(chosen):
                truth, difficult = objects[image_id]
                correct, ignored = _match(boxes, scores, truth, difficult)
                scores, correct = scores[~ignored], correct[~ignored]
            all_scores.append(scores)
            all_correct.append(correct)
        scores, correct = np.concatenate(all_scores), np.concatenate(all_correct)
        return average_precision(scores, correct, positives, self._use_07_metric)


def _match(
    boxes: torch.Tensor, scores: np.ndarray, truth: torch.Tensor, difficult: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of (N, 4) detections of one image and class are right, and which are left out."""
    overlap, owner = (part.numpy() for part in box_iou(boxes, truth).max(dim=1))
    hits = overlap > IOU_THRESHOLD
    ignored = hits & difficult[owner]
    order = np.argsort(-scores, kind="stable")
    order = order[hits[order] & ~ignored[order]]
    _, first = np.unique(owner[order], return_index=True)
    correct = np.zeros(len(scores), bool)
    correct[order[first]] = True
    return correct, ignored


def _objects_by_class(
    source: DataSource,
) -> dict[str, dict[Any, tuple[torch.Tensor, np.ndarray]]]:
    """Class name -> image id -> ((M, 4) float64 boxes x1 y1 x2 y2, (M,) bool difficult)."""
    grouped: dict[str, dict[Any, list[dict[str, Any]]]] = {}
    for item in source.annotations:
        name = source.categories[item["category_id"]]
        grouped.setdefault(name, {}).setdefault(item["image_id"], []).append(item)
    objects: dict[str, dict[Any, tuple[torch.Tensor, np.ndarray]]] = {}
    for name, images in grouped.items():
        for image_id, items in images.items():
            boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
            boxes[:, 2:] += boxes[:, :2]
            difficult = np.array([bool(item["difficult"]) for item in items])
            objects.setdefault(name, {})[image_id] = (boxes, difficult)
    return objects
