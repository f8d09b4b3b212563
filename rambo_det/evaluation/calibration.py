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
_FEW_RIGHT = 10


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
        raise InputError("nothing was detected in the images to calibrate on")
    matches = find_matches(truth, results, [0.5], PER_IMAGE, ids)
    if not matches.positives.any():
        raise InputError("the images to calibrate on have no object that counts")
    counted = ~matches.ignored[0]
    place = torch.from_numpy(matches.indices[counted])
    right, objects = matches.right[0, counted], matches.positives.sum(axis=1)
    return LabelledDetections(
        torch.cat(outputs)[place], torch.cat(classes)[place], torch.from_numpy(right),
        torch.from_numpy(objects),
    )  # fmt: skip


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
    log_factor, common = (
        torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    own = torch.zeros(classifier.num_classes, dtype=torch.float64)
    parameters = [log_factor, common]
    if not classifier.is_softmax:
        parameters.append(own.requires_grad_())
    right = labelled.right.double()
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def rescaling() -> Rescaling:
        # The line search may try values at which the factor would be infinite.
        return Rescaling(log_factor.clamp(-_MAX_LOG_FACTOR, _MAX_LOG_FACTOR).exp(), common + own)

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = classifier.scores(labelled.outputs, labelled.classes, rescaling())
        scores = scores.clamp(1e-12, 1 - 1e-12)
        value = torch.nn.functional.binary_cross_entropy(scores, right, reduction="sum")
        value = value + (own / _DEVIATION).square().sum() / 2
        # Keeps factor and common shift finite if scores separate right from wrong perfectly.
        value = value + 1e-3 * (log_factor.square() + common.square())
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found = rescaling()
    if not (found.factor.isfinite() and found.shift.isfinite().all()):
        raise InputError("no calibration fits these detections")
    return found


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

    The arguments and errors are those of :func:`label_detections` and :func:`fit`.
    """
    labelled = label_detections(model, images, truth)
    classifier = Classifier(model)
    new = fit_rescaling(classifier, labelled)
    raw, scores = (
        classifier.scores(labelled.outputs, labelled.classes, x).numpy()
        for x in (identity(classifier.num_classes), new)
    )
    classes, right = labelled.classes.numpy(), labelled.right.numpy()
    threshold = _threshold(scores, right, int(labelled.objects.sum()))
    if threshold is None:
        raise InputError("no detection in the images to calibrate on is right")
    thresholds = []
    for k, objects in enumerate(labelled.objects.tolist()):
        mine = classes == k
        few = right[mine].sum() < _FEW_RIGHT
        of_class = None if few else _threshold(scores[mine], right[mine], objects)
        thresholds.append(threshold if of_class is None else of_class)
    errors = (calibration_error(raw, right), calibration_error(scores, right))
    return Calibration(new, threshold, thresholds, raw, scores, right, errors)


def _threshold(scores: np.ndarray, right: np.ndarray, objects: int) -> float | None:
    best = best_f1(scores, right, objects) if right.any() else None
    # Three digits are enough. Rounds down, as Detectron2 drops a score equal to the threshold.
    return None if best is None else math.floor(best * 1000) / 1000


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error (Guo et al. 2017) in percent; nan without detections.

    The error is the mean over the N detections of |share of right detections − mean score| of the
    detection's bin. The 15 bins have equal width.
    """
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=right.astype(float) - scores, minlength=_BINS)
    return float(100 * np.abs(gaps).sum() / len(scores))


def draw_reliability(axis: Any, curves: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Draws the share of right detections over the mean score, in the bins of the calibration
    error. Each curve is a label, (N,) scores, and (N,) bool, whether each detection is right."""
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for label, scores, right in curves:
        bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
        number = np.bincount(bins, minlength=_BINS)
        used = number >= 5  # the share of fewer detections says nothing
        mean, share = (
            np.bincount(bins, weights=x, minlength=_BINS)[used] / number[used]
            for x in (scores, right.astype(float))
        )
        error = calibration_error(scores, right)
        axis.plot(mean, share, marker="o", label=f"{label}: error {error:.1f} %")
    axis.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(loc="upper left")
