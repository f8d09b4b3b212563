"""How sure a difference between two losses is, given few seeds and a sample of images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .matches import Matches
from .precision import average_precision, metrics

_CHUNK = 64  # resamples at a time: bounds the memory


def image_weights(num_images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, num_images) int32: how often each image is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    rows = [
        np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        for _ in range(resamples)
    ]
    return np.asarray(rows, np.int32)


def resampled_metrics(
    matches: Matches, classes: list[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What :func:`.precision.metrics` gives for each row of ``weights``, (B, I)."""
    chunks = [
        metrics(average_precision(matches, weights[i : i + _CHUNK]), classes)
        for i in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@lru_cache
def _student_quantiles(freedom: int, number: int) -> np.ndarray:
    """(number,) quantiles of Student's t at probabilities evenly apart, mirror images around 0.

    With one draw for each resample the ends of a two-seed interval were off by up to a quarter, and
    alike in every comparison, as the draws are always the same.
    """
    draws = np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000))
    places = (2 * np.arange(number) + 1) / number - 1  # of t: P(|t| < that of the place)
    return np.sign(places) * np.quantile(draws, np.abs(places))


def difference(
    values: Sequence[float], resampled: np.ndarray, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Mean over the seeds of a paired difference, with its interval.

    The images, of which there are many, are resampled. The seeds are few, and resampling five of
    them would give an interval that is too short; Student's t, which is right for normal
    deviations, takes its place: resample b is

        mean over seeds of the difference on images b  +  t_b · s / sqrt(S),

    the t_b being the B quantiles of t in random order, s the standard deviation over the S seeds,
    and the interval the middle 95 % of them. With one seed it speaks of the images alone.

    Args:
        values: (S,) differences of percentages, seed by seed, on all images.
        resampled: (B, S) the same on each resample of the images.
        seed: of that order.
        level: of the interval.

    Returns:
        ``mean``, ``low`` and ``high``; none beyond ±100, which few seeds' t would be.
    """
    rng = np.random.default_rng(seed)
    centre = np.asarray(resampled, float).mean(axis=1)
    number = len(values)
    if number > 1:
        error = np.std(values, ddof=1) / number**0.5
        centre = centre + rng.permutation(_student_quantiles(number - 1, len(centre))) * error
    centre = centre[~np.isnan(centre)]  # a class may be missing on a resample
    tails = (1 - level) / 2
    low, high = np.quantile(centre, [tails, 1 - tails]) if len(centre) else (np.nan, np.nan)
    low, high = np.clip([low, high], -100.0, 100.0)
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}
