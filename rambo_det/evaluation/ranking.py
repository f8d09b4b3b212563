"""How a detector ranks: which detections are true, and what AP the false ones above them cost."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
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
    # One after the other, each in all images.
    images = np.array_split(np.array(evaluation.evalImgs, dtype=object), len(parameters.catIds))
    return [
        _rank_class(truth, found, evaluation, number, filter(None, of_class))
        for number, of_class in zip(parameters.catIds, images, strict=True)
    ]


def _rank_class(
    truth: COCO, found: COCO, evaluation: COCOeval, number: int, images: Iterable[dict[str, Any]]
) -> RankedClass:
    """The ranking of category ``number``, from what COCOeval has matched in each image."""
    items: list[dict[str, Any]] = []
    objects = 0
    for image in images:
        objects += int((np.asarray(image["gtIgnore"]) == 0).sum())
        ious = np.asarray(evaluation.ious[image["image_id"], number])
        for place, detection in enumerate(image["dtIds"]):
            if not image["dtIgnore"][0, place]:
                item = {"true": image["dtMatches"][0, place] > 0, **found.anns[detection]}
                items.append({**item, "iou": float(ious[place].max()) if ious.size else 0.0})
    items.sort(key=lambda item: -item["score"])
    iou = evaluation.params.iouThrs[0]

    def column(key: str, kind: Any) -> np.ndarray:
        return np.array([item[key] for item in items], dtype=kind)

    return RankedClass(
        truth.cats[number]["name"],
        objects,
        scores=column("score", float),
        true=column("true", bool),
        iou=column("iou", float),
        image_ids=np.array([item["image_id"] for item in items]),
        boxes=column("bbox", float).reshape(-1, 4),
        reasons=np.array([_reason(truth, item, iou) for item in items], dtype=object),
    )


def _reason(truth: COCO, item: dict[str, Any], iou: float) -> str:
    """What a false detection shows instead of an object of its class that nothing else found."""
    if item["true"]:
        return ""
    if item["iou"] >= iou:
        return "found twice"
    there = truth.imgToAnns.get(item["image_id"], ())
    there = [other for other in there if other["category_id"] != item["category_id"]]
    if there:
        boxes = [other["bbox"] for other in there]
        ious = mask_util.iou([item["bbox"]], boxes, [0] * len(boxes))[0]
        name = truth.cats[there[int(ious.argmax())]["category_id"]]["name"]
        if ious.max() >= iou:
            return f"wrong: {name}"
        if ious.max() >= max(_TOUCHES, item["iou"]):
            return f"near: {name}"
    return "badly placed" if item["iou"] >= _TOUCHES else "background"


def best_threshold(ranked: Sequence[RankedClass]) -> float | None:
    """The score at which the detections of all classes above it have the highest F1; None: none."""
    scores, true = (
        np.concatenate([getattr(k, x) for k in ranked] or [[]]) for x in ("scores", "true")
    )
    return best_f1(scores, true.astype(bool), sum(k.num_objects for k in ranked))


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
