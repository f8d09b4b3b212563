"""Finds which detections are right, and computes the AP of many resamples of a dataset's images.

Shapes: B resamples, I images, K classes, T IoU thresholds, N detections.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: The recalls at which COCO's evaluation reads the precision.
RECALLS = np.linspace(0.0, 1.0, 101)
_CHUNK = 64  # resamples at a time, to limit the memory


@dataclass
class Matches:
    """The N detections of a detector, sorted by class and then by descending score."""

    classes: list[str]  # names of the K classes, in the order of their category ids
    scores: np.ndarray  # (N,) float64
    indices: np.ndarray  # (N,) int, index of the detection in the list that was given
    images: np.ndarray  # (N,) int, index of the detection's image among the sorted ids
    offsets: np.ndarray  # (K + 1,) int: detections of class k are offsets[k]:offsets[k + 1]
    right: np.ndarray  # (T, N) bool, matched to an object that counts
    ignored: np.ndarray  # (T, N) bool, neither right nor wrong: matched to a crowd
    overlaps: np.ndarray  # (N,) float, the largest IoU with an object of the class, no crowd
    positives: np.ndarray  # (K, I) int, number of objects that count
    boxes: np.ndarray  # (N, 4) float x, y, width, height in px
    curves: np.ndarray  # (K, 101) precision at RECALLS and the first IoU; nan without objects

    @property
    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the detections that count at the first IoU, and whether they are right."""
        counts = ~self.ignored[0]
        return self.scores[counts], self.right[0, counts]


def class_names(truth: COCO) -> list[str]:
    """Returns the names of the classes, in the order of their category ids."""
    return [item["name"] for item in truth.loadCats(sorted(truth.getCatIds()))]


def find_matches(
    truth: COCO,
    detections: Sequence[dict[str, Any]],
    ious: Sequence[float] | None = None,
    max_per_image: int = 100,
    image_ids: Sequence[Any] | None = None,
) -> Matches:
    """Matches detections with the objects of a dataset as COCO's evaluation does.

    Args:
        truth: the annotations.
        detections: in COCO's result format.
        ious: the T IoU thresholds for a right detection; None: COCO's ten.
        max_per_image: how many detections of a class count in an image: the highest scores.
        image_ids: the images to evaluate; None: all.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = truth.loadRes([{**item} for item in detections]) if detections else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        params = evaluation.params
        params.areaRng, params.maxDets = params.areaRng[:1], [max_per_image]  # all sizes
        params.iouThrs = params.iouThrs if ious is None else np.array(ious)
        params.imgIds = params.imgIds if image_ids is None else list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval["precision"][0, :, :, 0, -1].T
    class_of, image_of = ({n: i for i, n in enumerate(x)} for x in (params.catIds, params.imgIds))
    positives = np.zeros((len(class_of), len(image_of)), int)
    rows: list[list[float]] = []
    matched = [np.zeros((len(params.iouThrs), 0))]
    ignored = [*matched]
    for item in filter(None, evaluation.evalImgs):
        k, i = class_of[item["category_id"]], image_of[item["image_id"]]
        positives[k, i] = np.sum(np.asarray(item["gtIgnore"]) == 0)
        place = item["image_id"], item["category_id"]
        crowds = [i for i, object_ in enumerate(evaluation._gts[place]) if object_["iscrowd"]]
        overlaps = np.asarray(evaluation.ious[place])
        overlaps = np.delete(overlaps, crowds, axis=1) if overlaps.size else overlaps
        for row, number in enumerate(item["dtIds"]):
            best = overlaps[row].max() if overlaps.size else 0.0
            score, box = item["dtScores"][row], found.anns[number]["bbox"]
            rows.append([k, i, score, best, number - 1, *box])  # loadRes numbers from 1
        matched.append(item["dtMatches"])
        ignored.append(item["dtIgnore"])
    table = np.array(rows, float).reshape(-1, 9)
    order = np.lexsort((-table[:, 2], table[:, 0]))
    classes, images, scores, iou, indices = table[order, :5].T
    skipped = np.concatenate(ignored, axis=1)[:, order] > 0
    return Matches(
        classes=class_names(truth),
        scores=scores,
        indices=indices.astype(int),
        images=images.astype(int),
        offsets=np.searchsorted(classes, range(len(class_of) + 1)),
        right=(np.concatenate(matched, axis=1)[:, order] > 0) & ~skipped,
        ignored=skipped,
        overlaps=iou,
        positives=positives,
        boxes=table[order, 5:],
        curves=np.where(curves < 0, np.nan, curves),
    )


def average_precisions(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Returns the AP in 0..1, as COCOeval gives it for a dataset in which images occur repeatedly.

    An image that occurs w times contributes each of its detections w times, with equal scores. A
    true positive of the image counts w times in recall and precision. The 101-point AP, read off
    the envelope of precision, equals the AP of a list with all copies written out.

    Args:
        matches: the matches of one detector.
        weights: (B, I) int, how often each image occurs.

    Returns:
        (B, K, T) float; nan for a class without objects.
    """
    result = np.full((len(weights), len(matches.positives), len(matches.right)), np.nan)
    for first in range(0, len(weights), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        objects = weights[chunk] @ matches.positives.T
        for k, (start, end) in enumerate(zip(matches.offsets, matches.offsets[1:], strict=False)):
            right, has_objects = matches.right[:, start:end], objects[:, k] > 0
            # Detections after the last one that is right at any IoU do not change the AP.
            end = int(np.flatnonzero(right.any(axis=0)).max(initial=-1)) + 1
            copies = weights[chunk][:, matches.images[start : start + end]]
            all_counts = np.cumsum(copies, axis=1)
            for t, ignored in enumerate(matches.ignored[:, start : start + end]):
                hits = np.flatnonzero(right[t])
                counts = np.cumsum(copies * ~ignored, axis=1) if ignored.any() else all_counts
                ap = ap_of_lists(copies[:, hits], counts[:, hits], objects[:, k])
                result[chunk][has_objects, k, t] = ap[has_objects]
    return result


def ap_of_lists(copies: np.ndarray, num_seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns the 101-point AP of B lists of detections, (B,).

    Args:
        copies: (B, P) how often each of the P right detections occurs, the highest score first.
        num_seen: (B, P) number of detections down to and including each right detection.
        objects: (B,) number of objects to find.
    """
    hits = np.cumsum(copies, axis=1)
    precision = hits / np.maximum(num_seen, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(objects, 1)[:, None]
    # The number of RECALLS that each detection is the first to reach.
    reached = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=1, prepend=0)
    return (envelope * reached).sum(axis=1) / len(RECALLS)


def metrics(matches: Matches, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns ``AP``, ``AP50``, ``AP75`` and ``AP-<class>`` in percent, each (B,).

    Arguments are those of :func:`average_precisions`, at COCO's ten IoUs; without weights every
    image occurs once, and B is 1. Nan: no objects.
    """
    once = np.ones((1, matches.positives.shape[1]), int)
    ap = 100 * average_precisions(matches, once if weights is None else weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for a mean of no class
        mean = np.nanmean(ap, axis=1)
    means = {"AP": mean.mean(axis=1), "AP50": mean[:, 0], "AP75": mean[:, 5]}
    return means | {f"AP-{name}": ap[:, k].mean(axis=1) for k, name in enumerate(matches.classes)}
