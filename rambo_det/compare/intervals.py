"""How sure a difference between two losses is, and whether scores are probabilities."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from ..evaluation.calibration import calibration_error
from ..evaluation.matches import Matches


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


def refitted(scores: np.ndarray, right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Scores recalibrated by Platt's two numbers, fitted on one half of the images for the other.

    Of N detections: ``scores`` in 0..1, whether they are ``right``, the number of their images.
    """
    odds = special.logit(np.clip(scores, 1e-7, 1 - 1e-7))
    result = np.empty(len(scores))
    for half in (0, 1):
        mine = images % 2 == half
        x, sign = odds[~mine], np.where(right[~mine], 1.0, -1.0)

        def loss(w: np.ndarray, x: np.ndarray = x, sign: np.ndarray = sign) -> float:
            # The last term bounds the fit where the other half is separable or empty.
            bound = 5e-4 * np.sum((w - [1.0, 0.0]) ** 2)
            return float(np.logaddexp(0, -sign * (w[0] * x + w[1])).sum() + bound)

        slope, shift = optimize.minimize(loss, [1.0, 0.0]).x
        result[mine] = special.expit(slope * odds[mine] + shift)
    return result


def calibration(matches: Matches) -> dict[str, float]:
    """``ECE`` at IoU 0.5, and ``ECE refit`` after Platt's recalibration, in percent."""
    counted = ~matches.ignored[0]
    scores, right = matches.scores[counted], matches.right[0][counted]
    again = refitted(scores, right, matches.images[counted])
    return {"ECE": calibration_error(scores, right), "ECE refit": calibration_error(again, right)}
