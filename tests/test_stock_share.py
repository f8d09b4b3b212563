"""The stock loss's share in the loss of a detector, and keys out of range, with real models."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rambo_det import RamboCriterion
from rambo_det.engine.setup import read_config
from rambo_det.errors import InputError

from .models import small_cfg, training_inputs

FASTER, RETINA = "quickstart/faster_rcnn_rambo.yaml", "quickstart/retinanet_rambo.yaml"
STOCK = {FASTER: "quickstart/faster_rcnn_ce.yaml", RETINA: "quickstart/retinanet_focal.yaml"}


def losses_of(name, *opts, iteration=0):
    """The losses of a training step, from the seed's weights."""
    torch.manual_seed(0)
    model = build_model(small_cfg(name, *opts)).train()
    torch.manual_seed(1)
    with EventStorage(iteration):
        losses = model(training_inputs())
    sum(losses.values()).backward()
    return losses, model


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
    [("BETA", 2.0), ("BETA", float("nan")), ("MARGIN", -1.0), ("CE_WEIGHT", -1.0),
     ("CE_WEIGHT", float("inf")), ("CE_WARMUP", -1)],
)  # fmt: skip
def test_values_out_of_range_are_named(key, value):
    cfg = small_cfg()
    cfg.MODEL.RAMBO[key] = value
    with pytest.raises(InputError, match=f"MODEL.RAMBO.{key} must be .*got"):
        RamboCriterion.from_cfg(cfg, 4)


def test_a_config_with_the_key_that_is_gone_is_read_with_a_warning(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text("MODEL: {RAMBO: {IOU_THRESHOLDS: [0.5, 0.75], MARGIN: 0.25}}\n")
    cfg = read_config(str(file))
    assert cfg.MODEL.RAMBO.MARGIN == 0.25 and "IOU_THRESHOLDS" not in cfg.MODEL.RAMBO
    assert "MODEL.RAMBO.IOU_THRESHOLDS" in caplog.text


def test_a_criterion_has_the_defaults_of_the_config():
    plain, configured = RamboCriterion(4), RamboCriterion.from_cfg(small_cfg(), 4)
    for name in ("weight", "margin", "beta", "global_ranking", "ce_weight", "ce_warmup", "_spec"):
        assert getattr(plain, name) == getattr(configured, name), name
    assert torch.equal(plain.memory.negatives, configured.memory.negatives)


def test_the_warm_up_comes_on_top_of_the_weight():
    loss = RamboCriterion(3, ce_weight=0.25, ce_warmup=10)
    with EventStorage(5):
        assert loss.loss_weights() == (0.5, 0.75)
    assert loss.loss_weights() == (1.0, 0.25)  # outside of a training
