"""Whether scores can be read as probabilities of being right."""

from __future__ import annotations

import numpy as np

from .matches import Matches

_BINS = 15


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017) in percent; nan without detections.

    The mean, over the detections, of |share that is right − mean score| in each of 15 bins of equal
    width.

    Args:
        scores: (N,) in 0..1.
        right: (N,) bool.
    """
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=right.astype(float) - scores, minlength=_BINS)
    return float(100 * np.abs(gaps).sum() / len(scores))


def refitted(scores: np.ndarray, right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Scores recalibrated by Platt's two numbers, fitted on one half of the images for the other.

    Args:
        scores: (N,) in 0..1.
        right: (N,) bool.
        images: (N,) int, which image each is of.

    Returns:
        (N,) in 0..1, in the same order within each half if scores and being right go together.
    """
    odds = _log_odds(scores)
    result = np.empty(len(scores))
    for half in (0, 1):
        mine = images % 2 == half
        slope, shift = _platt(odds[~mine], right[~mine])
        result[mine] = 1 / (1 + np.exp(-(slope * odds[mine] + shift)))
    return result


def _log_odds(scores: np.ndarray) -> np.ndarray:
    inside = np.clip(scores, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def _platt(odds: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and shift of the logistic regression of ``right`` on ``odds``, by Newton's method."""
    columns = np.stack([odds, np.ones_like(odds)])
    weights = np.array([1.0, 0.0])
    ridge = 1e-3 * np.eye(2)  # bounds the fit where the halves are separable or empty
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(weights @ columns, -30, 30)))
        gradient = columns @ (p - right) + ridge @ (weights - [1.0, 0.0])
        step = np.linalg.solve((columns * p * (1 - p)) @ columns.T + ridge, gradient)
        weights = weights - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), float(weights[1])


def calibration(matches: Matches) -> dict[str, float]:
    """``ECE`` at IoU 0.5, and ``ECE refit`` after Platt's recalibration, in percent."""
    counted = ~matches.ignored[0]
    scores, right = matches.scores[counted], matches.right[0][counted]
    again = refitted(scores, right, matches.images[counted])
    return {"ECE": calibration_error(scores, right), "ECE refit": calibration_error(again, right)}
