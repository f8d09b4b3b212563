"""Which detections of a run are right, and the average precision of many resamples of the images.

Shapes: B resamples, I images, K classes, T IoU thresholds, N detections.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: Recalls and number of IoU thresholds of COCO's evaluation.
RECALLS, IOUS = np.linspace(0.0, 1.0, 101), 10


@dataclass
class Matches:
    """The N detections of a run on I images, K classes, T IoU thresholds (COCO's ten).

    Attributes:
        scores: (N,) float64; class by class, the highest first.
        images: (N,) int32, index of the detection's image in COCO's order of their ids.
        offsets: (K + 1,) int64: detections of class k are ``offsets[k]:offsets[k + 1]``.
        right: (T, N) bool, matched to an object that counts.
        ignored: (T, N) bool, neither right nor wrong: matched to a crowd.
        positives: (K, I) int32, objects that count.
        boxes: (N, 4) float32, x, y, width, height in px.
        curves: (K, 101) precision at :data:`RECALLS`, at IoU 0.5; nan of a class without objects.
    """

    scores: np.ndarray
    images: np.ndarray
    offsets: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    positives: np.ndarray
    boxes: np.ndarray
    curves: np.ndarray


def find_matches(truth: COCO, detections: list[dict[str, Any]]) -> Matches:
    """Matches detections in COCO's result format with the objects of the data set.

    Args:
        truth: annotations, whose category ids in order are the K classes.
        detections: dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
        evaluation.evaluate()
        evaluation.accumulate()
    params = evaluation.params
    curves = evaluation.eval["precision"][0, :, :, 0, -1].T
    positives = np.zeros((len(params.catIds), len(params.imgIds)), np.int32)
    fields: dict[str, list[Any]] = {n: [] for n in ("score", "image", "right", "ignored", "box")}
    counts = [0]
    number = {image: index for index, image in enumerate(params.imgIds)}
    for k in range(len(params.catIds)):
        every = evaluation.evalImgs[k * len(number) : (k + 1) * len(number)]
        images = [image for image in every if image is not None]
        scores = np.concatenate([[], *(image["dtScores"] for image in images)])
        order = np.argsort(-scores, kind="stable")
        where = [number[image["image_id"]] for image in images for _ in image["dtScores"]]
        empty = np.zeros((IOUS, 0))
        matched = np.concatenate([empty, *(i["dtMatches"] for i in images)], axis=1) > 0
        ignored = np.concatenate([empty, *(i["dtIgnore"] for i in images)], axis=1) > 0
        for image in images:
            positives[k, number[image["image_id"]]] = np.sum(np.asarray(image["gtIgnore"]) == 0)
        boxes = [found.anns[i]["bbox"] for image in images for i in image["dtIds"]]
        parts = (scores, np.array(where, np.int32), matched & ~ignored, ignored,
                 np.array(boxes, np.float32).reshape(-1, 4).T)  # fmt: skip
        for name, part in zip(fields, parts, strict=True):
            fields[name].append(part[..., order])
        counts.append(len(order))
    score, image, right, ignored, box = (np.concatenate(x, axis=-1) for x in fields.values())
    curves = np.where(curves < 0, np.nan, curves)
    return Matches(score, image, np.cumsum(counts), right, ignored, positives, box.T, curves)


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP in 0..1, as COCOeval gives it for a data set in which images occur several times.

    An image that occurs w times has its detections w times in the list, at one score: their true
    positives count w in recall and precision, and the 101-point AP, which is read off the envelope
    of precision, is that of the list with every copy written out.

    Args:
        matches: of one run.
        weights: (B, I) int, how often each image occurs.

    Returns:
        (B, K, T) float; nan where a class has no objects.
    """
    num_classes = len(matches.positives)
    result = np.full((len(weights), num_classes, IOUS), np.nan)
    objects = weights @ matches.positives.T
    for k in range(num_classes):
        part = slice(matches.offsets[k], matches.offsets[k + 1])
        right, ignored = matches.right[:, part], matches.ignored[:, part]
        # Behind the last that is right at any threshold, nothing changes the AP.
        end = int(np.flatnonzero(right.any(axis=0))[-1]) + 1 if right.any() else 0
        copies = weights[:, matches.images[part][:end]]
        seen = np.cumsum(copies, axis=1)
        known = objects[:, k] > 0
        for t in range(IOUS):
            hits = np.flatnonzero(right[t, :end])
            counted = seen
            if ignored[t, :end].any():
                counted = np.cumsum(copies * ~ignored[t, :end], axis=1)
            ap = _area(copies[:, hits], counted[:, hits], objects[:, k])
            result[known, k, t] = ap[known]
    return result


def _area(copies: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """101-point AP of B lists: at their P right detections, (B, P) copies and detections so far."""
    found = np.cumsum(copies, axis=1)
    precision = found / np.maximum(seen, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(objects, 1)[:, None]
    # How many of the recalls each detection is the first to reach.
    reached = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=1, prepend=0)
    return (envelope * reached).sum(axis=1) / len(RECALLS)


def metrics(ap: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """(B, K, T) AP in 0..1 to percent: ``AP``, ``AP50``, ``AP75`` and ``AP-<class>``, each (B,)."""
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(ap[:, :, 0])
        count = np.maximum(known.sum(axis=1), 1)
        mean = np.where(known[:, :, None], ap, 0.0).sum(axis=1) / count[:, None]
        mean[~known.any(axis=1)] = np.nan
        found = {"AP": mean.mean(axis=1), "AP50": mean[:, 0], "AP75": mean[:, 5]}
        found |= {f"AP-{name}": ap[:, k].mean(axis=1) for k, name in enumerate(classes)}
    return {name: 100 * value for name, value in found.items()}
