"""How sure a difference between two losses is."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def image_weights(num_images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, num_images) int: how often each image is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), resamples)


def difference(values: Sequence[float], resampled: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean over the seeds of a paired difference, with its 95 % interval.

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

    Returns:
        ``mean``, ``low`` and ``high``; none beyond ±100, which few seeds' t would be.
    """
    centre = np.asarray(resampled, float).mean(axis=1)
    if len(values) > 1:
        quantiles = stats.t.ppf((np.arange(len(centre)) + 0.5) / len(centre), len(values) - 1)
        centre = centre + np.random.default_rng(seed).permutation(quantiles) * stats.sem(values)
    centre = centre[~np.isnan(centre)]  # a class may be missing on a resample
    low, high = np.quantile(centre, [0.025, 0.975]) if len(centre) else (np.nan, np.nan)
    low, high = np.clip([low, high], -100.0, 100.0)
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}
