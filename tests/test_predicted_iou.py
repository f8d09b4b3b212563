"""Overlaps of predicted boxes and the stock loss's share in the detectors, with real models."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from rambo_det import RamboCriterion
from rambo_det.engine.setup import merge
from rambo_det.errors import InputError
from rambo_det.modeling.one_stage import flatten_levels
from rambo_det.modeling.predicted_box_iou import class_deltas

from .models import small_cfg, training_inputs

FASTER, RETINA = "quickstart/faster_rcnn_rambo.yaml", "quickstart/retinanet_rambo.yaml"
STOCK = {FASTER: "quickstart/faster_rcnn_ce.yaml", RETINA: "quickstart/retinanet_focal.yaml"}


def losses_of(name, *opts, iteration=0, watch=None):
    """The losses of a training step, from the seed's weights; ``watch(model)`` before it."""
    torch.manual_seed(0)
    model = build_model(small_cfg(name, *opts)).train()
    if watch:
        watch(model)
    torch.manual_seed(1)
    with EventStorage(iteration):
        losses = model(training_inputs())
    sum(losses.values()).backward()
    return losses, model


@pytest.mark.parametrize("name", [FASTER, RETINA])
def test_positives_are_ordered_by_the_boxes_that_are_now_predicted(name):
    """The IoUs that the loss is given, against Detectron2's own boxes and IoUs, one by one."""
    seen = {}

    def watch(model):
        head = model if name == RETINA else model.roi_heads.box_predictor
        inner, losses = head.rambo_loss.forward, head.losses

        def forward(scores, gt_classes, *made_of, ious=None):
            seen.update(ious=ious, gt_classes=gt_classes)
            return inner(scores, gt_classes, *made_of, ious=ious)

        def remember(*inputs):
            seen["inputs"], seen["head"] = inputs, head
            return losses(*inputs)

        head.rambo_loss.forward, head.losses = forward, remember

    losses, model = losses_of(name, "MODEL.RAMBO.IOU_GAP", 0.0, watch=watch)
    head, ious = seen["head"], seen["ious"]
    if name == FASTER:
        (_, deltas), proposals = seen["inputs"]
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        deltas = class_deltas(deltas, gt_classes, head.num_classes)
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = torch.cat([p.gt_boxes.tensor for p in proposals])
    else:
        anchors, logits, labels, deltas, gt_boxes = seen["inputs"]
        gt_classes = flatten_levels(logits, labels)[1]
        boxes = Boxes.cat(anchors).tensor.repeat(len(labels), 1)
        deltas, gt_boxes = torch.cat(deltas, 1).flatten(0, 1), torch.cat(gt_boxes)
    positive = ((gt_classes >= 0) & (gt_classes < head.num_classes)).nonzero().flatten()
    assert len(positive) > 5 and torch.equal(gt_classes, seen["gt_classes"])
    for row in positive.tolist():
        box = head.box2box_transform.apply_deltas(deltas[row : row + 1], boxes[row : row + 1])
        want = pairwise_iou(Boxes(box), Boxes(gt_boxes[row : row + 1])).item()
        assert ious[row].item() == pytest.approx(want, abs=1e-5)
    assert ious.count_nonzero() <= len(positive)
    plain, _ = losses_of(name)
    assert losses["loss_cls"] > plain["loss_cls"]  # scores know nothing of boxes at the start
    assert torch.equal(losses["loss_box_reg"], plain["loss_box_reg"])


@pytest.mark.parametrize("name", [FASTER, RETINA])
def test_the_stock_loss_is_added_with_its_weight_and_its_gradient(name):
    (plain, plain_model), (stock, stock_model) = losses_of(name), losses_of(STOCK[name])
    mixed, model = losses_of(name, "MODEL.RAMBO.CE_WEIGHT", 0.25)
    torch.testing.assert_close(
        mixed["loss_cls"], plain["loss_cls"] + 0.25 * stock["loss_cls"], rtol=1e-5, atol=1e-6
    )
    bias = "roi_heads.box_predictor.cls_score.bias" if name == FASTER else "head.cls_score.bias"
    of = [dict(m.named_parameters())[bias].grad for m in (model, plain_model, stock_model)]
    torch.testing.assert_close(of[0], of[1] + 0.25 * of[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [FASTER, RETINA])
def test_the_warm_up_starts_with_the_stock_loss_and_ends_without_it(name):
    stock, plain = losses_of(STOCK[name])[0], losses_of(name)[0]
    key = ("MODEL.RAMBO.CE_WARMUP", 10)
    torch.testing.assert_close(losses_of(name, *key)[0]["loss_cls"], stock["loss_cls"])
    half = losses_of(name, *key, iteration=5)[0]["loss_cls"]
    torch.testing.assert_close(half, (stock["loss_cls"] + plain["loss_cls"]) / 2)
    assert losses_of(name, *key, iteration=10)[0]["loss_cls"] == plain["loss_cls"]


@pytest.mark.parametrize(
    "key, value",
    [("IOU_GAP", -0.1), ("IOU_GAP", 1.1), ("IOU_GAP", float("nan")), ("BETA", 2.0),
     ("MARGIN", -1.0), ("CE_WEIGHT", -1.0), ("CE_WEIGHT", float("inf")), ("CE_WARMUP", -1)],
)  # fmt: skip
def test_values_out_of_range_are_named(key, value):
    cfg = small_cfg()
    cfg.MODEL.RAMBO[key] = value
    with pytest.raises(InputError, match=f"MODEL.RAMBO.{key} must be .*got"):
        RamboCriterion.from_cfg(cfg, 4)


def test_a_config_with_the_key_that_is_gone_is_read_with_a_warning(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text("MODEL: {RAMBO: {IOU_THRESHOLDS: [0.5, 0.75], MARGIN: 0.25}}\n")
    cfg = small_cfg()
    merge(cfg, str(file), [])
    assert cfg.MODEL.RAMBO.MARGIN == 0.25 and "IOU_THRESHOLDS" not in cfg.MODEL.RAMBO
    assert "MODEL.RAMBO.IOU_THRESHOLDS" in caplog.text


def test_class_deltas_are_those_of_the_rows_class():
    deltas = torch.arange(24.0).view(2, 12)
    assert class_deltas(deltas, torch.tensor([2, 0]), 3).tolist() == [
        [8, 9, 10, 11],
        [12, 13, 14, 15],
    ]


def test_order_by_overlaps_and_an_image_without_objects():
    model = build_model(small_cfg(FASTER, "MODEL.RAMBO.IOU_GAP", 0.0))
    with EventStorage():
        losses = model([*training_inputs(1), *training_inputs(1, empty=True)])
    assert losses["loss_cls"] > 0


def test_the_warm_up_comes_on_top_of_the_weight():
    loss = RamboCriterion(3, ce_weight=0.25, ce_warmup=10)
    with EventStorage(5):
        assert loss.loss_weights() == (0.5, 0.75)
    assert loss.loss_weights() == (1.0, 0.25)  # outside of a training
