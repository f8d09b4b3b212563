"""How a detector ranks: which detections are true, and what AP the false ones above them cost."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_RECALLS = np.linspace(0.0, 1.0, 101)
_TOUCHES = 0.1  # the least IoU at which a detection is a badly placed one rather than background


@dataclass
class RankedClass:
    """The detections of one class in a data set, the highest score first.

    Attributes:
        name: of the class.
        num_objects: how many there are to find; crowds and ignored ones are none.
        scores: ``(D,)`` descending.
        true: ``(D,)`` bool: matched to an object, as COCO's evaluation matches.
        iou: ``(D,)`` the largest IoU with an object of the class.
        image_ids, boxes: ``(D,)`` and ``(D, 4)``: x, y, width, height in px.
        reasons: ``(D,)`` text: what is wrong with a false one; empty for a true one.
    """

    name: str
    num_objects: int
    scores: np.ndarray
    true: np.ndarray
    iou: np.ndarray
    image_ids: np.ndarray
    boxes: np.ndarray
    reasons: np.ndarray

    @property
    def ap(self) -> float:
        """COCO's AP at the IoU of the matching, 0..1; NaN where there is nothing to find."""
        return average_precision(self.true, self.num_objects)

    @property
    def ap_ideal(self) -> float:
        """The AP of the same detections with every true one above every false one."""
        return average_precision(np.sort(self.true)[::-1], self.num_objects)

    @property
    def outranked(self) -> int:
        """How many true detections have a false one above them."""
        above = np.cumsum(~self.true)
        return int((self.true & (above > 0)).sum())

    def costs(self) -> np.ndarray:
        """``(D,)``: by how much the AP, not interpolated, would rise without each false one."""
        ranks = np.arange(1, len(self.true) + 1)
        # Without a detection above it, a true one at rank r has precision tp / (r - 1), not tp / r.
        gain = np.where(self.true, np.cumsum(self.true) / (ranks * np.maximum(ranks - 1, 1)), 0)
        below = np.cumsum(gain[::-1])[::-1]
        return np.where(self.true, 0, below / max(self.num_objects, 1))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision ``(D,)`` after each detection."""
        found = np.cumsum(self.true)
        return found / max(self.num_objects, 1), found / np.arange(1, len(found) + 1)


def average_precision(true: np.ndarray, num_objects: int) -> float:
    """COCO's AP: the highest precision at or beyond each of 101 recalls, averaged.

    Args:
        true: ``(D,)`` bool, the highest score first.
        num_objects: how many there are to find; 0: the AP is NaN.
    """
    if num_objects == 0:
        return float("nan")
    found = np.cumsum(true)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    places = np.searchsorted(found / num_objects, _RECALLS, side="left")
    return float(envelope[places].mean())


def rank_detections(
    truth: COCO, results: Sequence[dict[str, Any]], iou: float = 0.5
) -> list[RankedClass]:
    """Ranks the detections of each class over all images.

    Args:
        truth: the annotations.
        results: in COCO's result format; boxes x, y, width, height in px.
        iou: from which on a detection can be true.

    Returns:
        one for each category, in the order of their ids.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = truth.loadRes([{**item} for item in results]) if results else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        parameters = evaluation.params
        parameters.iouThrs, parameters.maxDets = np.array([iou]), [100]
        parameters.areaRng, parameters.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    names = {item["id"]: item["name"] for item in truth.dataset["categories"]}
    by_class: dict[int, list[dict[str, Any]]] = {number: [] for number in parameters.catIds}
    objects = dict.fromkeys(parameters.catIds, 0)
    for image in filter(None, evaluation.evalImgs):
        number = image["category_id"]
        objects[number] += int((np.asarray(image["gtIgnore"]) == 0).sum())
        ious = np.asarray(evaluation.ious[image["image_id"], number])
        for place, detection in enumerate(image["dtIds"]):
            if image["dtIgnore"][0, place]:
                continue
            by_class[number].append(
                {
                    **found.anns[detection],
                    "true": image["dtMatches"][0, place] > 0,
                    "iou": float(ious[place].max()) if ious.size else 0.0,
                }
            )
    others = _Others(truth, names, iou)
    return [
        _ranked(names[number], objects[number], by_class[number], others)
        for number in parameters.catIds
    ]


def _ranked(
    name: str, num_objects: int, items: list[dict[str, Any]], others: _Others
) -> RankedClass:
    order = np.argsort([-item["score"] for item in items], kind="mergesort")
    items = [items[i] for i in order]
    return RankedClass(
        name,
        num_objects,
        scores=np.array([item["score"] for item in items], dtype=float),
        true=np.array([item["true"] for item in items], dtype=bool),
        iou=np.array([item["iou"] for item in items], dtype=float),
        image_ids=np.array([item["image_id"] for item in items]),
        boxes=np.array([item["bbox"] for item in items], dtype=float).reshape(-1, 4),
        reasons=np.array([others.reason(item) for item in items], dtype=object),
    )


class _Others:
    """What a false detection shows instead of an object of its class that nothing else found."""

    def __init__(self, truth: COCO, names: dict[int, str], iou: float) -> None:
        self._truth, self._names, self._iou = truth, names, iou

    def reason(self, item: dict[str, Any]) -> str:
        if item["true"]:
            return ""
        if item["iou"] >= self._iou:
            return "found twice"
        there = [
            annotation
            for annotation in self._truth.imgToAnns.get(item["image_id"], ())
            if annotation["category_id"] != item["category_id"]
        ]
        if there:
            boxes = [annotation["bbox"] for annotation in there]
            ious = mask_util.iou([item["bbox"]], boxes, [0] * len(boxes))[0]
            name = self._names[there[int(ious.argmax())]["category_id"]]
            if ious.max() >= self._iou:
                return f"wrong: {name}"
            if ious.max() >= max(_TOUCHES, item["iou"]):
                return f"near: {name}"
        return "badly placed" if item["iou"] >= _TOUCHES else "background"


def best_threshold(ranked: Sequence[RankedClass]) -> float | None:
    """The score at which the detections of all classes above it have the highest F1; None: none."""
    scores, true = (
        np.concatenate([np.zeros(0), *(getattr(k, name) for k in ranked)])
        for name in ("scores", "true")
    )
    return best_f1(scores, true, sum(k.num_objects for k in ranked))


def best_f1(scores: np.ndarray, true: np.ndarray, num_objects: int) -> float | None:
    """The score at which the detections above it have the highest F1; None: there is nothing.

    Args:
        scores: ``(D,)`` in any order.
        true: ``(D,)`` bool.
        num_objects: how many there are to find.
    """
    if not len(scores) or not num_objects:
        return None
    order = np.argsort(-scores, kind="mergesort")
    f1 = 2 * np.cumsum(true[order]) / (np.arange(1, len(scores) + 1) + num_objects)
    # Only the last of equal scores is a place where a threshold can be.
    f1[:-1][np.diff(scores[order]) == 0] = 0
    return float(scores[order][f1.argmax()])
