"""The Faster R-CNN adapter in real Detectron2 models."""

import importlib
from inspect import signature

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

import rambo_det
from rambo_det import RamboCriterion, RamboFastRCNNOutputLayers
from rambo_det.errors import InputError
from rambo_det.modeling.scores import log_odds

from .models import CONFIGS, small_cfg, training_inputs, write_coco

STOCK = "quickstart/faster_rcnn_ce.yaml"


def losses_of(model, inputs):
    with EventStorage() as storage:
        return model(inputs), storage.latest()


@pytest.fixture
def coco(tmp_path, catalogs):
    register_coco_instances("few_shapes", {}, *write_coco(tmp_path / "data"))
    return "few_shapes"


def test_three_lines_in_a_stock_detectron2_script(tmp_path, coco):
    """What the README promises for an existing project; everything else here is that project."""
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / STOCK))
    cfg.MODEL.ROI_HEADS.NAME = "RamboROIHeads"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (coco,), ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 3
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    trainer = DefaultTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    moved = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])]
    assert "roi_heads.box_predictor.cls_score.weight" in moved
    memory = trainer.model.roi_heads.box_predictor.rambo_loss.memory
    assert int(memory.written) == 3
    scalars = trainer.storage.latest()
    assert 0 < scalars["rambo/AP"][0] < 1 and "loss_cls" in scalars

    # The stock trainer's own resume brings the memory back.
    cfg.SOLVER.MAX_ITER = 4
    resumed = DefaultTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    restored = resumed.model.roi_heads.box_predictor.rambo_loss.memory
    for name, buffer in memory.tensors().items():
        assert torch.equal(restored.tensors()[name], buffer), name


def test_initial_weights_and_all_other_losses_are_the_stock_models():
    models = []
    for name in (STOCK, "quickstart/faster_rcnn_rambo.yaml"):
        seed_all_rng(3)
        models.append(build_model(small_cfg(name)))
    stock, ours = (m.state_dict() for m in models)
    assert stock.keys() == ours.keys()
    assert all(torch.equal(stock[k], ours[k]) for k in stock)
    streams = []
    for name in (STOCK, "quickstart/faster_rcnn_rambo.yaml"):
        seed_all_rng(3)
        build_model(small_cfg(name))
        streams.append(torch.rand(3))
    assert torch.equal(*streams)
    results = []
    for model in models:
        seed_all_rng(3)
        results.append(losses_of(model, training_inputs())[0])
    for key in ("loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"):
        assert torch.equal(results[0][key], results[1][key]), key
    assert not torch.equal(results[0]["loss_cls"], results[1]["loss_cls"])


@pytest.mark.parametrize("score", ["log_odds", "softmax"])
def test_a_checkpoint_is_the_stock_models(tmp_path, score):
    seed_all_rng(3)
    model = build_model(small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.RAMBO.SCORE", score))
    sum(losses_of(model, training_inputs())[0].values()).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    stock = build_model(small_cfg(STOCK))
    checkpoint = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    incompatible = stock.load_state_dict(checkpoint)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    stock = build_model(small_cfg(STOCK))
    DetectionCheckpointer(stock).load(str(tmp_path / "model.pth"))
    inputs = [{k: v for k, v in x.items() if k != "instances"} for x in training_inputs()]
    with torch.no_grad():
        pairs = zip(model.eval()(inputs), stock.eval()(inputs), strict=True)
        for ours, theirs in pairs:
            a, b = ours["instances"], theirs["instances"]
            assert len(a) > 0
            assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.pred_classes, b.pred_classes)


def test_score_logits_predicts_by_sigmoid():
    model = build_model(
        small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.RAMBO.SCORE", "logits")
    )
    predictor = model.roi_heads.box_predictor
    logits = torch.randn(5, 5)
    (probs,) = predictor.predict_probs((logits, None), [range(5)])
    torch.testing.assert_close(probs, logits.sigmoid())


@pytest.mark.parametrize("ce", [{"ce_weight": 0.5}, {"ce_warmup": 10}])
def test_what_is_trained_and_what_boxes_are_scored_by_must_agree(ce):
    box = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    arguments = {"input_shape": ShapeSpec(channels=8), "num_classes": 3, "box2box_transform": box}
    with pytest.raises(InputError, match="SCORE logits .* set .*USE_SIGMOID_CE to True"):
        RamboFastRCNNOutputLayers(score="logits", rambo_loss=RamboCriterion(3, **ce), **arguments)
    if "use_sigmoid_ce" not in signature(FastRCNNOutputLayers.__init__).parameters:
        return  # the v0.6 release
    with pytest.raises(InputError, match="USE_SIGMOID_CE .*SCORE log_odds .* to logits"):
        RamboFastRCNNOutputLayers(use_sigmoid_ce=True, **arguments)
    layers = RamboFastRCNNOutputLayers(
        score="logits", use_sigmoid_ce=True, rambo_loss=RamboCriterion(3, **ce), **arguments
    )
    assert layers.predict_probs((torch.zeros(2, 4), None), [range(2)])[0].eq(0.5).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"weight": 0.0}, "weight must be > 0"),
        ({"weight": -1.0}, "weight must be > 0"),
        ({"ce_weight": -2.0}, "ce_weight must be >= 0"),
        ({"ce_warmup": -5}, "ce_warmup must be >= 0"),
        ({"class_names": ["a"]}, "class_names must be 3, got 1"),
    ],
)
def test_parameters_of_the_criterion_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        RamboCriterion(3, **arguments)


def test_log_odds_against_float64():
    logits = (torch.randn(500, 6) * 20).requires_grad_()
    z = logits.detach().double()
    want = torch.stack(
        [z[:, c] - torch.cat([z[:, :c], z[:, c + 1 :]], 1).logsumexp(1) for c in range(5)], 1
    )
    got = log_odds(logits)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    got.sum().backward()
    assert logits.grad.isfinite().all()
    # In the order of the softmax, where that has not saturated.
    mild = torch.randn(50, 4)
    probs = mild.double().softmax(1)[:, :-1].flatten()
    assert torch.equal(log_odds(mild.double()).flatten().argsort(), probs.argsort())


def test_images_without_a_box_give_a_connected_zero():
    model = build_model(small_cfg())
    losses, scalars = losses_of(model, training_inputs(empty=True))
    assert losses["loss_cls"].item() == 0
    sum(losses.values()).backward()
    assert model.roi_heads.box_predictor.cls_score.weight.grad is not None
    assert "rambo/AP" not in scalars


def test_training_scalars():
    model = build_model(small_cfg())
    _, scalars = losses_of(model, training_inputs())
    names = {k for k in scalars if k.startswith("rambo/")}
    assert {"rambo/AP", "rambo/memory_fill", "rambo/zero_gradient", "rambo/starved"} <= names
    per_class = [scalars[k][0] for k in names if k.startswith("rambo/AP-")]
    assert scalars["rambo/AP"][0] == pytest.approx(sum(per_class) / len(per_class))
    assert scalars["rambo/zero_gradient"][0] == 0


def test_no_event_storage_is_needed():
    predictor = build_model(small_cfg()).roi_heads.box_predictor
    predictor.rambo_loss.log("rambo")


def test_loss_weight_scales_the_loss():
    values = []
    for weight in (1.0, 3.0):
        seed_all_rng(3)
        model = build_model(
            small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.RAMBO.LOSS_WEIGHT", weight)
        )
        values.append(losses_of(model, training_inputs())[0]["loss_cls"].item())
    assert values[1] == pytest.approx(3 * values[0])


@pytest.mark.parametrize(
    "key, value",
    [
        ("LAMBDA", 0.0),
        ("LIFT", -1.0),
        ("MARGIN", -0.5),
        ("BETA", 1.5),
        ("MEMORY_LENGTH", -1),
        ("MEMORY_SIZE", 0),
        ("LOSS_WEIGHT", 0.0),
        ("LAMBDA_RULE", "adaptive"),
        ("SCORE", "entropy"),
    ],
)
def test_keys_out_of_range(key, value):
    with pytest.raises(InputError, match=f"MODEL.RAMBO.{key} must be"):
        rule = ("MODEL.RAMBO.LAMBDA_RULE", "fixed") if key == "LAMBDA" else ()
        name = "quickstart/faster_rcnn_rambo.yaml"
        build_model(small_cfg(name, *rule, f"MODEL.RAMBO.{key}", value))


def test_config_without_the_node_names_the_remedy():
    cfg = small_cfg()
    del cfg.MODEL["RAMBO"]
    with pytest.raises(InputError, match="add_rambo_config"):
        build_model(cfg)


def test_only_the_nodes_are_added():
    stock, ours = get_cfg(), get_cfg()
    rambo_det.add_rambo_config(ours)
    del ours.MODEL["RAMBO"], ours["RAMBO_TRAIN"]
    assert ours.dump() == stock.dump()


def test_importing_again_does_no_harm():
    importlib.reload(rambo_det.modeling.roi_heads)
    importlib.reload(rambo_det)


@pytest.mark.parametrize("together", [True, False])
def test_the_key_of_global_ranking(together):
    model = build_model(
        small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.RAMBO.GLOBAL_RANKING", together)
    )
    assert model.roi_heads.box_predictor.rambo_loss.global_ranking == together


def test_names_of_another_number_of_classes_are_not_taken():
    model = build_model(
        small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 7)
    )
    assert model.roi_heads.box_predictor.rambo_loss.class_names == list("0123456")


@pytest.mark.parametrize("iteration", [0, 40])
def test_the_memory_comes_back_with_a_resume_and_not_with_weights(iteration):
    """A training that starts from the weights of another one has its own batches to remember."""
    scores, gt_classes = torch.randn(30, 3), torch.arange(30) % 4
    earlier, later = RamboCriterion(3), RamboCriterion(3)
    with EventStorage(39):
        earlier(scores.requires_grad_(), gt_classes)
    later.load_state_dict(earlier.state_dict())
    with EventStorage(iteration):
        for _ in range(2):  # as with accumulated gradients
            later(scores, gt_classes)
    assert later.memory.written == (3 if iteration else 2)
