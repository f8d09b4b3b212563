"""docs/tuning.md: each cause gives the symptom, and each fix removes it, as the page says.

test_loss.py and test_memory.py test the general properties of the loss: ties, levels, batches
without a positive.
"""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY

from rambo_det import RamboLoss
from rambo_det.cli.train import main
from rambo_det.modeling.scores import SCORE_FUNCTIONS, log_odds

from .architectures import build
from .command_line import own_data
from .doc_pages import DOCS, text_of
from .models import training_inputs
from .strategies import batch


@pytest.fixture(scope="module")
def page():
    return " ".join(text_of(DOCS / "tuning.md").split())


def test_stays_at_1_early_and_the_gradient_does_not_fade():
    strengths = []
    for rows in (1_000, 100_000):
        scores, gt_classes = batch(rows, 1, 10)
        value = RamboLoss(1)(scores.requires_grad_(), gt_classes)
        value.backward()
        assert value > 0.95
        strengths.append(scores.grad.abs().sum().item())
    assert strengths[1] > strengths[0] / 5  # AP falls to a hundredth


def test_stays_at_1_with_a_fixed_lambda_that_starves():
    scores, gt_classes = batch(100_000, 1, 20)
    starved = []
    for lambda_ in (1.0, 1e3, 1e8, None):
        loss = RamboLoss(1, lambda_=lambda_)
        assert loss(scores, gt_classes) > 0.95
        starved.append(loss.stats.starved.item())
    assert starved[0] == 1 and starved[1] > 0.9 and starved[2] < 0.1 and starved[3] == 0


def test_stays_at_1_with_softmax_and_the_margin_of_log_odds(page):
    """The order is perfect, but no box has a probability above 0.5."""
    gt_classes = batch(100, 4, 8)[1]
    logits, softmax = torch.nn.functional.one_hot(gt_classes, 5) * 1.2, SCORE_FUNCTIONS["softmax"]
    assert softmax(logits).max() < 0.5
    assert RamboLoss(4)(softmax(logits), gt_classes) > 0.95
    margin = float(re.search(r"that unit, ([\d.]+) for", page)[1])
    assert RamboLoss(4, margin=margin)(softmax(logits), gt_classes) == 0
    assert RamboLoss(4)(log_odds(logits), gt_classes) == 0


def test_threshold_hides_detections_in_good_order():
    """Lowering a RetinaNet's class bias keeps the order, but no score stays above the threshold."""
    inputs = [{k: x[k] for k in ("image", "height", "width")} for x in training_inputs(1)]
    found = {}
    for threshold in (0.05, 0.0):
        model = build("retinanet", False, "MODEL.RETINANET.SCORE_THRESH_TEST", threshold).eval()
        with torch.no_grad():
            model.head.cls_score.bias -= 4
            found[threshold] = len(model(inputs)[0]["instances"])
    assert found[0.05] == 0 and found[0.0] > 0
    assert get_cfg().MODEL.RETINANET.SCORE_THRESH_TEST == 0.05
    assert get_cfg().MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05


def test_a_class_that_lies_lower_is_among_no_detections_and_the_list_of_all_pulls_it_up():
    scores, gt_classes = batch(400, 2, 40, std=0.5)
    gt_classes[:36], gt_classes[36:40] = 0, 1
    low = gt_classes == 1
    scores[:, 1] -= 10
    scores[gt_classes == 0, 0] += 5
    scores[low, 1] += 5  # above all scores of class 1, below the background of class 0
    assert (scores.flatten().topk(100).indices % 2 == 0).all()  # an image has 100 detections
    leaf = scores.requires_grad_()
    loss = RamboLoss(2, beta=0.0)
    loss(leaf, gt_classes).backward()
    assert loss.stats.class_ap.tolist() == [1.0, 1.0]
    assert not leaf.grad[low, 1].any()
    leaf.grad = None
    RamboLoss(2)(leaf, gt_classes).backward()
    assert (leaf.grad[low, 1] < 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_nan_does_not_come_from_the_loss(scale):
    """Finite scores of any size give a bounded loss and a finite gradient."""
    scores, gt_classes = batch(500, 4, 40, std=scale)
    for step in ({}, {"lambda_": 1000.0}):
        leaf = scores.clone().requires_grad_()
        value = RamboLoss(4, **step)(leaf, gt_classes)
        value.backward()
        assert 0 <= value <= 1 and leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() < 10


@pytest.mark.parametrize(
    "name, message",
    [
        ("retinanet", "Loss became infinite or NaN at iteration="),
        ("faster_rcnn", "Predicted boxes or scores contain Inf/NaN. Training has diverged."),
    ],
)
def test_nan_from_the_learning_rate_stops_the_run(name, message, page, tmp_path, catalogs):
    assert message in page
    data, keys = own_data(tmp_path / "data", "tr")
    keys += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "20", "SEED", "1"]
    keys += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    keys += ["OUTPUT_DIR", str(tmp_path / "out")]
    config = f"configs/quickstart/{name}_rambo.yaml"
    with pytest.raises(FloatingPointError) as error:
        main(["--config", config, *data, *keys, "SOLVER.BASE_LR", "1e12"])
    assert str(error.value).startswith(message)
    if name == "retinanet":
        assert "some scores are not finite, of class" in str(error.value)


def test_errors_at_the_start(page, tmp_path):
    """Tests the two errors that Detectron2 raises. test_configs.py and others test the rest."""
    (tmp_path / "a.yaml").write_text("MODEL:\n  RAMBO:\n    MARGIN: 1.0\n")
    with pytest.raises(KeyError) as error:
        get_cfg().merge_from_file(str(tmp_path / "a.yaml"))
    with pytest.raises(KeyError) as of_heads:
        ROI_HEADS_REGISTRY.get("NoHeads")  # as if rambo_det were not imported
    found = of_heads.value.args[0].replace("NoHeads", "RamboROIHeads")
    for message in (error.value.args[0], found):
        assert f"`{message}`" in page
