"""COCO's average precision over many resamples of the images at once.

Shapes: B resamples, I images, K classes, T IoU thresholds, N detections; see :mod:`.matches`.
"""

from __future__ import annotations

import numpy as np

from .matches import Matches

#: IoU thresholds and recalls of COCO's evaluation.
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


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
    result = np.full((len(weights), num_classes, len(IOUS)), np.nan)
    objects = weights @ matches.positives.T
    for k in range(num_classes):
        part = slice(matches.offsets[k], matches.offsets[k + 1])
        right, ignored = matches.right[:, part], matches.ignored[:, part]
        # Behind the last that is right at any threshold, nothing changes the AP.
        end = int(np.flatnonzero(right.any(axis=0))[-1]) + 1 if right.any() else 0
        copies = weights[:, matches.images[part][:end]]
        seen = np.cumsum(copies, axis=1)
        known = objects[:, k] > 0
        for t in range(len(IOUS)):
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


def precision_curve(matches: Matches, k: int, t: int = 0) -> np.ndarray:
    """(101,) precision of class k at :data:`RECALLS`, as COCOeval has it; nan without objects."""
    part = slice(matches.offsets[k], matches.offsets[k + 1])
    objects = int(matches.positives[k].sum())
    if not objects:
        return np.full(len(RECALLS), np.nan)
    right = matches.right[t, part]
    found = np.cumsum(right)
    precision = found / np.maximum(np.cumsum(~matches.ignored[t, part]), 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / objects, RECALLS, side="left")
    return np.append(envelope, 0.0)[np.minimum(first, len(envelope))]


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
