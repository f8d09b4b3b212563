"""Scores that are probabilities: written into the last layer of every kind of detector."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from pycocotools.coco import COCO

from rambo_det.errors import InputError
from rambo_det.evaluation.calibration import (
    LabelledDetections,
    calibration_error,
    fit,
    identity,
    label_detections,
)
from rambo_det.modeling.classifier import Classifier, Rescaling

from .architectures import config
from .models import CONFIGS, training_inputs, write_coco

NUM_CLASSES = 4
RESCALING = Rescaling(
    torch.tensor(1.7).double(), torch.tensor([0.5, -1.0, 0.2, 2.0], dtype=torch.float64)
)
_SIGMOID = ("MODEL.RAMBO.SCORE", "logits")


def build(kind):
    torch.manual_seed(2)
    if kind == "fcos":
        cfg = LazyConfig.load(str(CONFIGS / "lazy/quickstart/fcos_rambo.py"))
        model = instantiate(cfg.model)
    else:
        name, _, sigmoid = kind.partition(" ")
        model = build_model(config(name, False, *(_SIGMOID if sigmoid else ())))
    for name, parameter in model.named_parameters():  # those of a new model are all alike
        if "cls_score" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return {"image": training_inputs(1)[0]["image"], "height": 96, "width": 96, "image_id": 0}


KINDS = ["faster_rcnn", "faster_rcnn sigmoid", "cascade", "c4", "retinanet", "fcos"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_foreseen_is_what_the_new_weights_score(kind, image):
    model = build(kind)
    before = {name: value.shape for name, value in model.state_dict().items()}
    classifier = Classifier(model)
    found, outputs = classifier.detect(image)
    assert len(found) > 20 and len(found.pred_classes.unique()) > 1
    same = classifier.scores(outputs, found.pred_classes, identity(NUM_CLASSES))
    torch.testing.assert_close(same.float(), found.scores, rtol=1e-4, atol=1e-6)

    classifier.apply(RESCALING)
    again, _ = classifier.detect(image)
    foreseen = classifier.scores(outputs, found.pred_classes, RESCALING)
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    # Other detections may be kept now: those of both passes, by box and class.
    old, predicted, new = (
        {(*box, label): score for box, label, score in
         zip(x.pred_boxes.tensor.tolist(), x.pred_classes.tolist(), scores.tolist(), strict=True)}
        for x, scores in ((found, found.scores), (found, foreseen), (again, again.scores))
    )  # fmt: skip
    both = list(new.keys() & predicted.keys())
    old, predicted, new = (np.array([x[key] for key in both]) for x in (old, predicted, new))
    assert len(both) > 10 and np.abs(new - old).max() > 0.05
    np.testing.assert_allclose(new, predicted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_class_of_low_scores_is_lifted(kind):
    """Labels drawn with the probabilities of a known rescaling: the fit finds it again."""
    classifier = Classifier(build(kind))
    generator = torch.Generator().manual_seed(0)
    number, width = 40_000, NUM_CLASSES + 1 if classifier.is_softmax else 1
    shape = (number, 1, width) if classifier.is_softmax else (number, width)
    outputs = 2 * torch.randn(shape, generator=generator) - 1
    classes = torch.randint(NUM_CLASSES, (number,), generator=generator)
    true = classifier.scores(outputs, classes, RESCALING)
    right = torch.rand(number, generator=generator) < true
    labelled = LabelledDetections(outputs, classes, right, torch.full((NUM_CLASSES,), 1000))
    found = fit(classifier, labelled)
    assert float(found.factor) == pytest.approx(1.7, rel=0.05)
    torch.testing.assert_close(found.shift, RESCALING.shift, rtol=0, atol=0.12)
    scores = [classifier.scores(outputs, classes, r) for r in (identity(NUM_CLASSES), found)]
    errors = [calibration_error(s.numpy(), right.numpy()) for s in scores]
    assert errors[0] > 2 and errors[1] < 1


def test_a_class_of_few_detections_takes_over_what_fits_all():
    classifier = Classifier(build("retinanet"))
    generator = torch.Generator().manual_seed(1)
    outputs = 2 * torch.randn(5000, 1, generator=generator)
    classes = torch.arange(5000) % (NUM_CLASSES - 1)
    classes[0] = NUM_CLASSES - 1  # one detection, which is wrong
    right = torch.rand(5000, generator=generator) < (outputs[:, 0] + 1).sigmoid()
    right[0] = False
    found = fit(classifier, LabelledDetections(outputs, classes, right, torch.ones(4).long()))
    torch.testing.assert_close(found.shift, torch.ones(4).double(), rtol=0, atol=0.3)


@pytest.mark.parametrize("all_right", [False, True])
def test_scores_that_tell_all_are_rescaled_within_bounds(all_right):
    classifier = Classifier(build("retinanet"))
    outputs = torch.linspace(-2, 2, 100)[:, None]
    right = outputs[:, 0] > (-3 if all_right else 0)
    labelled = LabelledDetections(outputs, torch.zeros(100).long(), right, torch.ones(4).long())
    found = fit(classifier, labelled)
    assert 0 < float(found.factor) < 1e4 and found.shift.isfinite().all()


def test_detections_are_labelled_as_coco_matches_them(tmp_path, image):
    """Every detection is made an object: the first on each is right, and it alone."""
    model = build("retinanet")
    found, _ = Classifier(model).detect(image)
    file, _ = write_coco(tmp_path, 1)
    truth = COCO(file)
    labelled = label_detections(model, [[image]], truth)
    assert labelled.objects.sum() == len(truth.anns) and len(labelled.right) > len(found)
    kept = found[:5]
    for number, (box, label) in enumerate(
        zip(kept.pred_boxes.tensor.tolist(), kept.pred_classes.tolist(), strict=True)
    ):
        x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
        truth.dataset["annotations"].append(
            {"id": 1000 + number, "image_id": 0, "category_id": label + 1, "bbox": [x, y, w, h],
             "area": w * h, "iscrowd": int(number == 4)}
        )  # fmt: skip
    truth.createIndex()
    more = label_detections(model, [[image]], truth)
    assert more.objects.sum() == labelled.objects.sum() + 4  # a crowd does not count
    assert more.right.sum() > labelled.right.sum()
    assert len(more.right) < len(labelled.right)  # what lies in the crowd does not count either


def test_nothing_to_fit_to_is_said(tmp_path, image):
    file, _ = write_coco(tmp_path, 1)
    truth = COCO(file)
    truth.dataset["annotations"] = []
    truth.createIndex()
    with pytest.raises(InputError, match="no object that counts"):
        label_detections(build("retinanet"), [[image]], truth)
    with pytest.raises(InputError, match="Linear has no scores that can be calibrated"):
        Classifier(torch.nn.Linear(1, 1))
