"""Ranks detections: which are true, and how much AP the false ones above the true ones cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from .matches import ap_of_lists, find_matches

_TOUCHES = 0.1  # minimum IoU of a badly placed detection; below it, a false detection is background


@dataclass
class RankedClass:
    """The D detections of one class in a dataset, sorted by descending score."""

    name: str
    num_objects: int  # number of objects to find, without crowds and ignored objects
    scores: np.ndarray  # (D,) descending
    true: np.ndarray  # (D,) bool: matched to an object, as COCO's evaluation matches
    iou: np.ndarray  # (D,) the largest IoU with an object of the class
    image_ids: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4) x, y, width, height in px
    reasons: np.ndarray  # (D,) str: what is wrong with a false detection; empty for a true one

    @property
    def ap(self) -> float:
        """COCO's AP at the IoU of the matching, 0..1; NaN without objects to find."""
        return average_precision(self.true, self.num_objects)

    @property
    def ap_ideal(self) -> float:
        """The AP of the same detections if every true one ranked above every false one."""
        return average_precision(np.sort(self.true)[::-1], self.num_objects)

    @property
    def outranked(self) -> int:
        """The number of true detections with a false one above them."""
        above = np.cumsum(~self.true)
        return int((self.true & (above > 0)).sum())

    def ap_costs(self) -> np.ndarray:
        """Returns ``(D,)``: how much the non-interpolated AP would rise without each false one."""
        ranks = np.arange(1, len(self.true) + 1)
        # With one false detection less above, precision at rank r is tp / (r - 1), not tp / r.
        gain = np.where(self.true, np.cumsum(self.true) / (ranks * np.maximum(ranks - 1, 1)), 0)
        below = np.cumsum(gain[::-1])[::-1]
        return np.where(self.true, 0, below / max(self.num_objects, 1))


def average_precision(true: np.ndarray, num_objects: int) -> float:
    """Returns COCO's AP: the highest precision at or beyond each of 101 recalls, averaged.

    ``true`` is ``(D,)`` bool, sorted by descending score. Without objects the AP is NaN.
    """
    ranks = np.flatnonzero(true)[None] + 1
    ap = ap_of_lists(np.ones_like(ranks), ranks, np.array([num_objects]))
    return float(ap[0]) if num_objects else float("nan")


def rank_detections(
    truth: COCO, results: Sequence[dict[str, Any]], iou: float = 0.5
) -> list[RankedClass]:
    """Ranks the detections of each class over all images; sorts the classes by category id.

    ``results`` are in COCO's result format, with boxes x, y, width, height in px. ``iou`` is the
    minimum IoU of a true detection.
    """
    matches, ids = find_matches(truth, results, [iou]), np.array(sorted(truth.getImgIds()))
    ranked = []
    for k, number in enumerate(sorted(truth.getCatIds())):
        of_class = np.arange(*matches.offsets[k : k + 2])
        of_class = of_class[~matches.ignored[0, of_class]]
        boxes, image_ids = matches.boxes[of_class], ids[matches.images[of_class]]
        true, overlaps = matches.right[0, of_class], matches.overlaps[of_class]
        reasons = [
            "" if right else _reason(truth, image, number, box, overlap, iou)
            for right, image, box, overlap in zip(true, image_ids, boxes, overlaps, strict=True)
        ]
        ranked.append(
            RankedClass(
                matches.classes[k], int(matches.positives[k].sum()), matches.scores[of_class], true,
                overlaps, image_ids, boxes, np.array(reasons, dtype=object),
            )
        )  # fmt: skip
    return ranked


def _reason(
    truth: COCO, image: Any, number: int, box: np.ndarray, overlap: float, iou: float
) -> str:
    """Returns why a detection of category ``number`` is false, in a few words."""
    if overlap >= iou:
        return "found twice"
    objects = truth.imgToAnns.get(image, ())
    others = [x for x in objects if x["category_id"] != number and not x.get("iscrowd")]
    if others:
        ious = mask_util.iou([box.tolist()], [x["bbox"] for x in others], [0] * len(others))[0]
        name = truth.cats[others[int(ious.argmax())]["category_id"]]["name"]
        if ious.max() >= iou:
            return f"wrong: {name}"
        if ious.max() >= max(_TOUCHES, overlap):
            return f"near: {name}"
    return "badly placed" if overlap >= _TOUCHES else "background"


def best_f1(scores: np.ndarray, true: np.ndarray, num_objects: int) -> float | None:
    """Returns the minimum score that gives the highest F1; None if no detection is right.

    ``scores`` and ``true`` (bool) are ``(D,)``, in any order.
    """
    if not true.any():
        return None
    order = np.argsort(-scores, kind="mergesort")
    f1 = 2 * np.cumsum(true[order]) / (np.arange(1, len(scores) + 1) + num_objects)
    # A threshold cannot separate equal scores: only the last of them can be the minimum.
    f1[:-1][np.diff(scores[order]) == 0] = 0
    return float(scores[order][f1.argmax()])
