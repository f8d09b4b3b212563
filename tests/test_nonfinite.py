"""Non-finite scores stop a run with an error that names the loss, class and iteration."""

import re

import pytest
import torch

from rambo_det import RamboCriterion, RamboLoss

from .architectures import build, training_losses

NAN, INF = float("nan"), float("inf")
# The layer, the index of its non-finite output, and the loss and class in the error message.
CASES = {
    "faster_rcnn": ("roi_heads.box_predictor.cls_score", 2, "loss_cls", "triangle"),
    "c4": ("roi_heads.box_predictor.cls_score", 4, "loss_cls", "background"),
    "cascade": ("roi_heads.box_predictor.1.cls_score", 0, "loss_cls_stage1", "circle"),
    "retinanet": ("head.cls_score", 3, "loss_cls", "star"),
    "rpn": ("proposal_generator.rpn_head.objectness_logits", 0, "loss_rpn_cls", "object"),
    "fcos": ("head.cls_score", 1, "loss_fcos_cls", "1"),  # its config names no classes
}


@pytest.mark.parametrize(
    "name, value",
    [(name, NAN) for name in CASES] + [("faster_rcnn", INF), ("faster_rcnn", -INF), ("rpn", INF)],
)
def test_the_error_names_loss_class_and_iteration(name, value, catalogs):
    layer, output, loss, class_name = CASES[name]
    model = build(name)
    with torch.no_grad():
        model.get_submodule(layer).bias[output] = value
    with pytest.raises(FloatingPointError) as error:
        training_losses(model, iteration=7)
    message = rf"Loss became infinite or NaN at iteration=7! {loss}: .* of class {class_name} "
    assert re.fullmatch(message + r"\(\d+ of \d+\)", str(error.value)), error.value


def test_many_classes_are_counted():
    scores = torch.full((3, 1203), NAN)
    message = r"class 0 \(3 of 3\), .*4 \(3 of 3\) and 1198 more$"
    with pytest.raises(FloatingPointError, match=message):
        RamboCriterion(1203)(scores, torch.tensor([0, 5, 1203]))
    too_large = torch.full((2, 3), 1e39, dtype=torch.float64)  # infinite in float32
    with pytest.raises(FloatingPointError, match=r"class 0 \(2 of 2\), "):
        RamboCriterion(3)(too_large, torch.tensor([0, 3]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, -1], [4] * 6], ids=["some", "no positive"])
def test_the_loss_alone_gives_nan_and_forgets_the_batch(value, labels):
    """Every comparison with NaN is false, so without a check NaN would vanish from the ranking."""
    loss, labels = RamboLoss(4, memory_length=2), torch.tensor(labels)
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    spoilt = scores.clone()
    spoilt[5, 1] = value  # an ignored row counts too
    result = loss(spoilt.requires_grad_(), labels)
    result.backward()
    assert result.isnan() and spoilt.grad.isnan().any() and loss.memory.fill_fraction == 0
    assert loss(scores, labels).isfinite()
