"""docs/tuning.md: each cause gives its symptom, and each fix mends it, as the page says."""

import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from fvcore.nn import sigmoid_focal_loss

import rambo_det
from rambo_det import RamboLoss
from rambo_det.cli.train import main
from rambo_det.modeling.scores import log_odds, softmax

from .architectures import config
from .doc_pages import DOCS, ROOT, sections, text_of
from .models import training_inputs, write_coco

PAGE = DOCS / "tuning.md"


def drawn(rows, classes, positives, mean=0.0, std=1.0):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, classes, generator=generator) * std + mean
    gt_classes = torch.full((rows,), classes)
    gt_classes[:positives] = torch.arange(positives) % classes
    return scores, gt_classes


def defaults(**changed):
    """Arguments of the detectors' loss, without memory."""
    return {"memory_length": 0, **changed}


def test_every_section_is_tested():
    tested = {
        "What to tune, in this order",  # advice
        "The loss stays at 1",
        "The loss is 0 from the start",
        "All scores alike",
        "No detections, or AP drops at a score threshold",
        "A class has an AP of 0",
        "NaN",
        "It learns, then AP falls after a resume",
        "Errors at the start",
    }
    assert {heading for heading, _ in sections(PAGE)} == tested


def test_stays_at_1_early_and_the_gradient_does_not_fade():
    strengths = []
    for rows in (1_000, 100_000):
        scores, gt_classes = drawn(rows, 1, 10, mean=-4.6)
        loss = RamboLoss(1, **defaults())
        value = loss(scores.requires_grad_(), gt_classes)
        value.backward()
        assert value > 0.95 and loss.stats.starved == 0
        strengths.append(scores.grad.abs().sum().item())
    assert strengths[1] > strengths[0] / 5  # AP is a hundredth


def test_stays_at_1_with_a_fixed_lambda_that_starves():
    scores, gt_classes = drawn(100_000, 1, 20, mean=-4.6)
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    shares = []
    for lambda_ in (1.0, cfg.MODEL.RAMBO.LAMBDA, cfg.MODEL.RAMBO.LAMBDA * 1e5):
        loss = RamboLoss(1, **defaults(lambda_=lambda_))
        value = loss(scores.clone().requires_grad_(), gt_classes)
        value.backward()
        shares.append(loss.stats.starved.item())
        assert value > 0.95
    assert shares[0] == 1 and shares[1] > 0.9 and shares[2] < 0.1
    loss = RamboLoss(1, **defaults())
    loss(scores, gt_classes)
    assert loss.stats.starved == 0


def test_stays_at_1_with_softmax_and_the_margin_of_log_odds():
    """The order is perfect, and no box is surer than one half."""
    gt_classes = drawn(100, 4, 8)[1]
    logits = torch.nn.functional.one_hot(gt_classes, 5) * 1.2
    assert softmax(logits).max() < 0.5
    assert RamboLoss(4, **defaults())(softmax(logits), gt_classes) > 0.95
    (margin, lift) = map(float, re.search(r"that unit, ([\d.]+) and ([\d.]+) for", text()).groups())
    assert RamboLoss(4, **defaults(margin=margin, lift=lift))(softmax(logits), gt_classes) == 0
    assert RamboLoss(4, **defaults())(log_odds(logits), gt_classes) == 0


def text():
    return " ".join(text_of(PAGE).split())


def test_is_0_without_a_positive():
    loss = RamboLoss(4, **defaults())
    value = loss(drawn(100, 4, 0)[0].requires_grad_(), torch.full((100,), 4))
    assert value == 0 and not loss.stats.present.any()


def test_scores_alike_the_level_is_free():
    scores, gt_classes = drawn(500, 4, 40)
    loss = RamboLoss(4, **defaults(beta=0.0))
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, gt_classes)
    value.backward()
    shift = torch.tensor([-8.0, 4.0, 0.5, 0.0])
    assert loss(scores + shift, gt_classes).item() == pytest.approx(value.item())
    assert leaf.grad.sum(0).abs().max() < 1e-3 * leaf.grad.abs().sum()


def test_scores_alike_equal_scores_count_against_the_positives():
    loss = RamboLoss(4, **defaults())
    assert loss(torch.zeros(500, 4), drawn(500, 4, 40)[1]) > 0.95


def test_threshold_hides_detections_in_good_order():
    """RetinaNet whose class bias is moved: the same order, nothing left above the threshold."""
    inputs = [{k: x[k] for k in ("image", "height", "width")} for x in training_inputs(1)]
    found = {}
    for threshold in (0.05, 0.0):
        cfg = config("retinanet", False, "MODEL.RETINANET.SCORE_THRESH_TEST", threshold)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        with torch.no_grad():
            model.head.cls_score.bias -= 4
            found[threshold] = len(model(inputs)[0]["instances"])
    assert found[0.05] == 0 and found[0.0] > 0
    assert get_cfg().MODEL.RETINANET.SCORE_THRESH_TEST == 0.05
    assert get_cfg().MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05


def test_a_class_that_lies_lower_is_out_of_reach_and_among_no_detections():
    scores, gt_classes = drawn(400, 2, 40, std=0.5)
    gt_classes[:36], gt_classes[36:40] = 0, 1
    low = gt_classes == 1
    scores[:, 1] -= 10
    scores[gt_classes == 0, 0] += 5
    scores[low, 1] += 5  # above all of its own class, below the background of the other
    assert (scores.flatten().topk(100).indices % 2 == 0).all()  # those of an image's detections
    leaf = scores.requires_grad_()
    loss = RamboLoss(2, **defaults(lift=0.2))
    loss(leaf, gt_classes).backward()
    assert loss.stats.class_ap.tolist() == [1.0, 1.0]
    assert not leaf.grad[low, 1].any()
    leaf.grad = None
    target = torch.nn.functional.one_hot(gt_classes, 3)[:, :2].float()
    sigmoid_focal_loss(leaf, target, reduction="sum").backward()  # CE_WEIGHT of a RetinaNet
    assert (leaf.grad[low, 1] < 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_nan_does_not_come_from_the_loss(scale):
    """Bounded, and with a finite gradient, whatever the finite scores."""
    scores, gt_classes = drawn(500, 4, 40, std=scale)
    for step in ({}, {"lambda_": 1000.0}):
        leaf = scores.clone().requires_grad_()
        value = RamboLoss(4, **defaults(**step))(leaf, gt_classes)
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
def test_nan_from_the_learning_rate_stops_the_run_as_the_page_says(
    name, message, tmp_path, catalogs
):
    assert message in text()
    data = ["--register-coco", "tr_train", *write_coco(tmp_path / "data", 4)]
    keys = ["DATASETS.TRAIN", "('tr_train',)", "DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "2"]
    keys += ["SOLVER.MAX_ITER", "20", "OUTPUT_DIR", str(tmp_path / "out"), "SEED", "1"]
    keys += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    config = f"configs/quickstart/{name}_rambo.yaml"
    with pytest.raises(FloatingPointError) as error:
        main(["--config", config, *data, *keys, "SOLVER.BASE_LR", "1e12"])
    assert str(error.value).startswith(message)
    if name == "retinanet":
        assert "scores that are not finite, of class" in str(error.value)


def test_after_a_resume_the_memory_is_empty_where_it_no_longer_fits():
    saved = RamboLoss(2, memory_length=2)
    for _ in range(3):
        saved(drawn(50, 2, 8)[0].requires_grad_(), drawn(50, 2, 8)[1])
    state = saved.state_dict()
    for changed in ({"memory_length": 2}, {"memory_length": 3}, {"memory_size": 64}):
        loss = RamboLoss(2, **{"memory_length": 2, **changed})
        loss.load_state_dict(state)
        assert loss.memory.fill == (changed == {"memory_length": 2})


REGISTRY = """
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NAME = "cpu", "RamboROIHeads"
build_model(cfg)
"""


def test_errors_at_the_start(tmp_path):
    page = text_of(PAGE)
    cfg = get_cfg()
    yaml = tmp_path / "a.yaml"
    yaml.write_text("MODEL:\n  RAMBO:\n    MARGIN: 1.0\n")
    with pytest.raises(KeyError) as error:
        cfg.merge_from_file(str(yaml))
    assert (
        error.value.args[0] == "Non-existent config key: MODEL.RAMBO"
        and error.value.args[0] in page
    )
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.DEVICE = "RamboROIHeads", "cpu"
    with pytest.raises(rambo_det.errors.InputError, match="^config has no MODEL.RAMBO"):
        build_model(cfg)
    done = subprocess.run(
        [sys.executable, "-c", REGISTRY], cwd=ROOT, capture_output=True, text=True
    )
    assert "No object named 'RamboROIHeads' found in 'ROI_HEADS' registry!" in done.stderr
    agnostic = config("faster_rcnn", False, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    with pytest.raises(rambo_det.errors.InputError) as error:
        build_model(agnostic)
    assert str(error.value).startswith(
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG cannot be combined"
    )
    assert len(re.findall(r"^\| `", page, re.M)) == 4  # those above
