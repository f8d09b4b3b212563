"""The statistics of a comparison against slow, independent versions of them."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rambo_det.compare.intervals import image_weights, paired_difference
from rambo_det.compare.pictures import ap50_of_images
from rambo_det.compare.text import format_value, verdict
from rambo_det.evaluation.calibration import calibration_error
from rambo_det.evaluation.matches import average_precisions, find_matches, metrics

from .detections import random_data

IMAGES = 12


def data(seed):
    """Returns annotations with crowds and an empty class, and detections of distinct scores."""
    truth, detections = random_data(seed)
    truth.dataset["categories"].append({"id": 4, "name": "d"})
    truth.createIndex()
    return truth, [{**x, "score": x["score"] + i / 1e5} for i, x in enumerate(detections)]


def repeated(truth, detections, weights):
    """Returns data that repeat each image ``weights`` times, with its boxes and detections."""
    images, annotations, found = [], [], []
    for image, times in zip(truth.dataset["images"], weights, strict=True):
        for _ in range(times):
            number = {"image_id": len(images) + 1}
            images.append({**image, "id": len(images) + 1})
            for item in truth.imgToAnns[image["id"]]:
                annotations.append({**item, **number, "id": len(annotations) + 1})
            found += [{**d, **number} for d in detections if d["image_id"] == image["id"]]
    result = COCO()
    result.dataset = {**truth.dataset, "images": images, "annotations": annotations}
    result.createIndex()
    return result, found


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_resamples_is_cocos(seed):
    truth, detections = data(seed)
    weights = np.vstack([np.ones(IMAGES, int), image_weights(IMAGES, 5, seed)])
    matches = find_matches(truth, detections)
    ours = metrics(matches, weights)
    for b, ap in enumerate(average_precisions(matches, weights)):
        again, found = repeated(truth, detections, weights[b])
        evaluation = COCOeval(again, again.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (T, R, K)
        expected = np.where(precision > -1, precision, np.nan).mean(axis=1).T
        np.testing.assert_allclose(ap, expected, atol=1e-9)
        for name, stat in zip(("AP", "AP50", "AP75"), evaluation.stats, strict=False):
            assert ours[name][b] == pytest.approx(100 * stat, abs=1e-7)


def test_ap_of_each_image_needs_no_square_of_their_number():
    small = find_matches(*data(5))
    matches = replace(small, positives=np.pad(small.positives, [(0, 0), (0, 3000)]))
    tracemalloc.start()
    found = ap50_of_images(matches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    each = average_precisions(small, np.eye(IMAGES, dtype=int))[:, :, 0]
    expected = [100 * np.mean([v for v in row if v == v] or [0]) for row in each]
    np.testing.assert_allclose(found[:IMAGES], expected)
    assert not found[IMAGES:].any() and peak < 16e6  # 3012² integers take 73 MB


def test_many_resamples_are_those_one_by_one():
    matches = find_matches(*data(2))
    weights = image_weights(IMAGES, 150)
    assert (weights.sum(axis=1) == IMAGES).all() and len(np.unique(weights, axis=0)) > 100
    each = [average_precisions(matches, row[None]) for row in weights]
    np.testing.assert_array_equal(average_precisions(matches, weights), np.concatenate(each))


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)])
def test_interval_of_seeds_alone_is_students(seeds, t):
    values = np.arange(seeds, dtype=float)
    found = paired_difference(list(values), np.tile(values, (2000, 1)))
    half = t * np.std(values, ddof=1) / seeds**0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["mean"] - found["low"] == pytest.approx(half, rel=0.02)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=0.02)


def test_interval_ends_where_differences_do():
    values = [-40.0, 60.0]
    found = paired_difference(values, np.tile(values, (2000, 1)))
    assert (found["mean"], found["low"], found["high"]) == (10.0, -100.0, 100.0)


def test_interval_of_images_alone_is_the_percentile_one():
    rng = np.random.default_rng(0)
    resampled = rng.normal(2.0, 1.0, (20000, 1))
    found = paired_difference([2.0], resampled)
    assert found["low"] == pytest.approx(np.quantile(resampled, 0.025))
    assert found["high"] == pytest.approx(np.quantile(resampled, 0.975))


def test_interval_covers_what_it_says():
    """Seeds and images both vary. 95 % of the intervals contain the true difference."""
    rng = np.random.default_rng(3)
    hits = []
    for trial in range(400):
        images = rng.normal(0, 1, 50)  # effect of each image on the difference
        seeds = rng.normal(0, 0.2, 4)
        per_seed = 0.5 + seeds + images.mean()
        weights = image_weights(50, 400, trial)
        resampled = 0.5 + seeds + (weights @ images / 50)[:, None]
        found = paired_difference(list(per_seed), resampled, trial)
        hits.append(found["low"] <= 0.5 <= found["high"])
    assert 0.92 < np.mean(hits) < 0.985


def test_calibration_error_bin_by_bin():
    rng = np.random.default_rng(0)
    scores = rng.random(3000) ** 2
    right = rng.random(3000) < scores**1.5
    expected = 0.0
    for low in range(15):
        inside = (scores >= low / 15) & (scores < (low + 1) / 15)
        if inside.any():
            expected += inside.sum() * abs(right[inside].mean() - scores[inside].mean())
    assert calibration_error(scores, right) == pytest.approx(100 * expected / 3000)
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize(
    "mean, low, high, seeds, kind, words",
    [
        (2.0, 1.0, 3.0, 3, "higher", "is 2.0 higher than that of cross entropy"),
        (-2.0, -3.0, -1.0, 3, "lower", "is 2.0 lower than that of cross entropy"),
        (2.0, -1.0, 3.0, 3, "none", "no difference can be shown with these 3 seeds"),
        (2.0, 1.0, 3.0, 1, "none", "one seed does not show"),
        (2.0, None, None, 0, "missing", "No seed is finished for both RaMBO"),
    ],
)
def test_the_verdict(mean, low, high, seeds, kind, words):
    ap = {"AP": {"mean": mean, "low": low, "high": high}}
    losses = dict.fromkeys(("ce", "rambo"), {"metrics": {"AP": {"mean": 40.0}}})
    less = {"rambo": {"seeds": [0] * seeds, "metrics": ap}}
    titles = {"ce": {"title": "cross entropy"}, "rambo": {"title": "RaMBO"}}
    data = {"x": {"differences": less, "losses": losses}}
    results = {"reference": "ce", "variants": titles, "data": data}
    found = verdict(results, "x", "rambo")
    assert found["kind"] == kind and words in found["text"]


def test_a_rounded_interval_still_shows_whether_it_contains_0():
    value = {"mean": 1.44, "low": -0.02, "high": 2.9}
    assert format_value(value) == "+1.4 (−0.0 … 2.9)"
    assert format_value(value | {"low": 0.02}) == "+1.4 (0.0 … 2.9)"
    assert format_value({"mean": -0.0, "std": -0.0}) == "0.0 ± 0.0"


def test_crowds_do_not_count_in_the_calibration():
    matches = find_matches(*data(1))
    ignored = matches.ignored[0]
    assert ignored.any()
    other = replace(matches, scores=np.where(ignored, 0.01, matches.scores))
    assert calibration_error(*other.counted) == calibration_error(*matches.counted)
