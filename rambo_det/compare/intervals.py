"""Confidence intervals of the difference between two losses."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def image_weights(num_images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Returns how often each image is drawn with replacement, (resamples, num_images) int."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), resamples)


def paired_difference(
    values: Sequence[float], resampled: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Returns the mean of a paired difference over the seeds, with its 95 % interval.

    There are many images, so they are resampled. There are few seeds: resampling five of them would
    give an interval that is too short. Student's t, which is right for normal deviations, covers
    the seeds instead. Resample b is

        mean over seeds of the difference on images b  +  t_b · s / sqrt(S),

    where the t_b are the B quantiles of t in random order and s is the standard deviation over the
    S seeds. The interval is the middle 95 % of the resamples. With one seed it covers only images.

    Args:
        values: (S,) differences in percentage points on all images, one per seed.
        resampled: (B, S) the same differences on each resample of the images.
        seed: of the random order of the t_b.

    Returns:
        ``mean``, ``low`` and ``high``; clipped to ±100, which t with few seeds can exceed.
    """
    centre = np.asarray(resampled, float).mean(axis=1)
    if len(values) > 1:
        quantiles = stats.t.ppf((np.arange(len(centre)) + 0.5) / len(centre), len(values) - 1)
        centre = centre + np.random.default_rng(seed).permutation(quantiles) * stats.sem(values)
    centre = centre[~np.isnan(centre)]  # a resample may lack a class
    low, high = np.quantile(centre, [0.025, 0.975]) if len(centre) else (np.nan, np.nan)
    low, high = np.clip([low, high], -100.0, 100.0)
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}
