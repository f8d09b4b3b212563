"""Calibrates a detector: rescales its scores to be the probabilities that detections are right.

With calibrated scores, 70 % of the boxes with a score of 0.7 are right. *Right* means matched to an
object at an IoU of 0.5, as COCO's evaluation matches; crowds do not count.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools.coco import COCO
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.classifier import Classifier, Rescaling
from .matches import find_matches
from .ranking import best_f1

#: Number of detections of an image to use. This is more than the usual 100, because a class may
#: have none of the best 100 if all its scores are low.
PER_IMAGE = 300
#: Prior standard deviation of the shifts of the classes around their common shift, in logits.
_DEVIATION = 0.5
#: Largest absolute value of the logarithm of the factor.
_MAX_LOG_FACTOR = 12.0
_BINS = 15
#: Number of right detections that a class needs for its own threshold.
_MIN_RIGHT = 10


@dataclass
class LabelledDetections:
    """The D detections that count, and whether each is right."""

    outputs: Tensor  # see Classifier.detect
    classes: Tensor  # (D,) int64
    right: Tensor  # (D,) bool
    objects: Tensor  # (K,) int64, number of objects that count


@contextlib.contextmanager
def without_score_threshold(model: Any) -> Iterator[None]:
    """Within the context, the model returns up to 300 detections of an image, with any score."""
    heads = getattr(getattr(model, "roi_heads", None), "box_predictor", model)
    with contextlib.ExitStack() as stack:
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            for name, value in {
                "test_score_thresh": 0.0,
                "test_topk_per_image": PER_IMAGE,
                "max_detections_per_image": PER_IMAGE,
                "test_topk_candidates": 10_000,
            }.items():
                if hasattr(head, name):
                    stack.callback(setattr, head, name, getattr(head, name))
                    setattr(head, name, value)
        yield


def label_detections(
    model: nn.Module, images: Iterable[list[dict[str, Any]]], truth: COCO
) -> LabelledDetections:
    """Runs the detector on labelled images, and determines which detections are right.

    Args:
        model: the detector, in evaluation mode.
        images: batches of inputs, as from a test loader of Detectron2.
        truth: the annotations of the images. The sorted category ids are the K classes.

    Raises InputError if the images have no object that counts, or no detection.
    """
    classifier = Classifier(model)
    results: list[dict[str, Any]] = []
    outputs, classes, ids = [], [], []
    category_ids = sorted(truth.getCatIds())
    with without_score_threshold(model):
        for image in (image for batch in images for image in batch):
            found, of_image = classifier.detect(image)
            outputs.append(of_image.cpu())
            classes.append(found.pred_classes.cpu())
            ids.append(image["image_id"])
            for item in instances_to_coco_json(found.to("cpu"), image["image_id"]):
                results.append({**item, "category_id": category_ids[item["category_id"]]})
    if not results:
        raise InputError("no detection in the calibration images")
    matches = find_matches(truth, results, [0.5], PER_IMAGE, ids)
    if not matches.positives.any():
        raise InputError(
            "the calibration images have no ground-truth objects (crowds do not count)"
        )
    indices = torch.from_numpy(matches.indices[~matches.ignored[0]])
    right, objects = map(torch.from_numpy, (matches.counted[1], matches.positives.sum(axis=1)))
    outputs, classes = torch.cat(outputs)[indices], torch.cat(classes)[indices]
    return LabelledDetections(outputs, classes, right, objects)


def identity(num_classes: int) -> Rescaling:
    """Returns the rescaling that changes nothing."""
    return Rescaling(torch.tensor(1.0).double(), torch.zeros(num_classes).double())


def fit_rescaling(classifier: Classifier, labelled: LabelledDetections) -> Rescaling:
    """Fits the rescaling that best predicts what is right (Platt 1999; Guo et al. 2017).

    All classes share one factor. With a sigmoid, each class has its own shift. A normal prior pulls
    these shifts towards a common shift, so a class with few detections gets about the common one.
    With a softmax, all classes share one shift against background: separate shifts would change
    which class of a box scores highest. Raises InputError if no rescaling fits.
    """
    log_factor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    common = torch.zeros((), dtype=torch.float64, requires_grad=True)
    class_shifts = torch.zeros(classifier.num_classes, dtype=torch.float64)
    class_shifts.requires_grad_(not classifier.is_softmax)
    parameters = [x for x in (log_factor, common, class_shifts) if x.requires_grad]
    right = labelled.right.double()
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def rescaling() -> Rescaling:
        # The line search may try values at which the factor would be infinite.
        factor = log_factor.clamp(-_MAX_LOG_FACTOR, _MAX_LOG_FACTOR).exp()
        return Rescaling(factor, common + class_shifts)

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = classifier.scores(labelled.outputs, labelled.classes, rescaling())
        scores = scores.clamp(1e-12, 1 - 1e-12)
        value = torch.nn.functional.binary_cross_entropy(scores, right, reduction="sum")
        value = value + (class_shifts / _DEVIATION).square().sum() / 2
        # Keeps factor and common shift finite if scores separate right from wrong perfectly.
        value = value + 1e-3 * (log_factor.square() + common.square())
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        fitted = rescaling()
    if not (fitted.factor.isfinite() and fitted.shift.isfinite().all()):
        raise InputError("the calibration did not converge to finite values")
    return fitted


@dataclass
class Calibration:
    """A rescaling, and its effect on the D detections to which it was fitted."""

    rescaling: Rescaling
    threshold: float  # minimum score that gives all detections together the best F1
    #: The same for each class; ``threshold`` for a class with fewer than ten right detections.
    thresholds: list[float]
    raw: np.ndarray  # (D,) float64 scores before the rescaling
    scores: np.ndarray  # (D,) float64 scores after the rescaling
    right: np.ndarray  # (D,) bool
    errors: tuple[float, float]  # calibration errors in percent, before and after


def calibrate(model: nn.Module, images: Iterable[list[dict[str, Any]]], truth: COCO) -> Calibration:
    """Fits a rescaling to labelled images, and chooses thresholds; does not change the model.

    The arguments and errors are those of :func:`label_detections` and :func:`fit_rescaling`.
    """
    labelled = label_detections(model, images, truth)
    classifier = Classifier(model)
    new = fit_rescaling(classifier, labelled)
    raw, scores = (
        classifier.scores(labelled.outputs, labelled.classes, x).numpy()
        for x in (identity(classifier.num_classes), new)
    )
    classes, right = labelled.classes.numpy(), labelled.right.numpy()
    threshold = _threshold(scores, right, int(labelled.objects.sum()), 1)
    if threshold is None:
        raise InputError("no detection in the calibration images matches an object")
    thresholds = []
    for k, objects in enumerate(labelled.objects.tolist()):
        of_class = classes == k
        own = _threshold(scores[of_class], right[of_class], objects, _MIN_RIGHT)
        thresholds.append(threshold if own is None else own)
    errors = (calibration_error(raw, right), calibration_error(scores, right))
    return Calibration(new, threshold, thresholds, raw, scores, right, errors)


def _threshold(scores: np.ndarray, right: np.ndarray, objects: int, min_right: int) -> float | None:
    best = best_f1(scores, right, objects) if right.sum() >= min_right else None
    # Three digits are enough. Rounds down, also from 1, as Detectron2 drops a score equal to the
    # threshold.
    return None if best is None else min(math.floor(best * 1000), 999) / 1000


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error (Guo et al. 2017) in percent; nan without detections.

    The error is the mean over the N detections of |share of right detections − mean score| of the
    detection's bin. The 15 bins have equal width.
    """
    if not len(scores):
        return float("nan")
    _, sums, hits = _bin_sums(scores, right)
    return float(100 * np.abs(hits - sums).sum() / len(scores))


def draw_reliability(axis: Any, curves: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Draws the share of right detections over the mean score, in the bins of the calibration
    error. Each curve is a label, (N,) scores, and (N,) bool, whether each detection is right."""
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for label, scores, right in curves:
        sums = _bin_sums(scores, right)
        # The share of fewer than five detections says nothing.
        number, total, hits = sums[:, sums[0] >= 5]
        error = calibration_error(scores, right)
        axis.plot(total / number, hits / number, marker="o", label=f"{label}: error {error:.1f} %")
    axis.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(loc="upper left")


def _bin_sums(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns (3, 15): number of detections, sum of scores and number of right ones per bin."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    rows = (np.ones_like(scores), scores, right)
    return np.stack([np.bincount(bins, weights=row, minlength=_BINS) for row in rows])
