"""Focal loss in Fast R-CNN's heads."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import sigmoid_focal_loss

from rambo_det.errors import InputError
from rambo_det.modeling.focal import FocalFastRCNNOutputLayers

from .architectures import training_losses
from .models import small_cfg, training_inputs

HEADS = [
    ("quickstart/faster_rcnn_ce.yaml", "FocalROIHeads"),
    ("quickstart/faster_rcnn_c4_ce.yaml", "FocalRes5ROIHeads"),
    ("quickstart/cascade_rcnn_ce.yaml", "FocalCascadeROIHeads"),
]


def layers(**kwargs):
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return FocalFastRCNNOutputLayers(
        ShapeSpec(channels=8), box2box_transform=transform, num_classes=3, **kwargs
    )


def proposals(gt_classes):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(len(gt_classes), 1)
    return Instances(
        (32, 32), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes + 1), gt_classes=gt_classes
    )


def loss_of(logits, labels, **kwargs):
    deltas = torch.zeros(len(labels), 12)
    with EventStorage():
        return layers(**kwargs).losses((logits, deltas), [proposals(labels)])["loss_cls"]


def test_the_loss_is_torchvisions_over_the_number_of_foreground_proposals():
    torch.manual_seed(0)
    labels = torch.tensor([0, 3, 2, 3, 3, 1, 0, 3])  # 3: background
    logits = torch.randn(8, 4, requires_grad=True)
    loss = loss_of(logits, labels)
    target = torch.eye(4)[labels][:, :3]
    expected = sigmoid_focal_loss(logits[:, :3], target, 0.25, 2.0, reduction="sum") / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (logits.grad[:, :3] != 0).all() and (logits.grad[:, 3] == 0).all()


@pytest.mark.parametrize("labels", [[3, 3], []])
def test_without_foreground_the_loss_stays_connected(labels):
    logits = torch.randn(len(labels), 4, requires_grad=True)
    loss = loss_of(logits, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    assert logits.grad is not None and torch.isfinite(loss)


def test_it_starts_at_the_prior_and_scores_by_sigmoid():
    head = layers(prior_prob=0.02)
    logits, _ = head(torch.zeros(5, 8))
    (scores,) = head.predict_probs((logits, None), [proposals(torch.zeros(5, dtype=torch.int64))])
    np.testing.assert_allclose(scores[:, :3].detach(), 0.02, rtol=1e-5)


@pytest.mark.parametrize(("config", "heads"), HEADS)
def test_every_kind_of_heads_learns_and_has_the_stock_weights(config, heads):
    stock_cfg = small_cfg(config)
    cfg = small_cfg(config, "MODEL.ROI_HEADS.NAME", heads, "MODEL.RETINANET.FOCAL_LOSS_GAMMA", 1.5)
    states = []
    for item in (stock_cfg, cfg):
        torch.manual_seed(0)
        model = build_model(item)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    differ = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    assert differ and all(key.endswith("cls_score.bias") for key in differ)
    focal = [m for m in model.modules() if isinstance(m, FocalFastRCNNOutputLayers)]
    assert len(focal) == len(differ) and focal[0].focal_gamma == 1.5
    before = focal[-1].cls_score.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(training_losses(model)[0].values()).backward()
    optimizer.step()
    assert not torch.equal(focal[-1].cls_score.weight, before)
    model.eval()
    with torch.no_grad():
        assert "instances" in model(training_inputs(1))[0]


def test_the_federated_loss_is_refused():
    with pytest.raises(InputError, match="USE_FED_LOSS"):
        layers(use_fed_loss=True)


def test_focals_keys_and_weight():
    keys = ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", 0.6, "MODEL.RETINANET.PRIOR_PROB", 0.03]
    config, heads = HEADS[0]
    cfg = small_cfg(config, "MODEL.ROI_HEADS.NAME", heads, *keys)
    head = build_model(cfg).roi_heads.box_predictor
    assert (head.focal_alpha, head.prior_prob) == (0.6, 0.03)
    logits, labels = torch.randn(4, 4), torch.tensor([0, 1, 3, 3])
    one, three = (loss_of(logits, labels, loss_weight={"loss_cls": w}) for w in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
