"""Every architecture trains with our loss and leaves no trace in the stock one.

Whole runs through the command line: test_matrix.py.
"""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes
from detectron2.utils.env import seed_all_rng

from rambo_det.engine.trainer import RamboTrainer
from rambo_det.modeling import RamboCriterion
from rambo_det.modeling.classifier import Classifier, Rescaling
from rambo_det.modeling.scores import SCORE_FUNCTIONS

from .architectures import (
    ARCHITECTURES,
    assert_same_predictions,
    captured,
    config,
    memories,
    pieces,
    register_drawn,
    spread,
)
from .models import training_inputs


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    name = register_drawn(tmp_path_factory.mktemp("drawn"), "drawn")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Run:
    """Two iterations of an architecture."""

    def __init__(self, name, data, folder):
        self.cfg = config(name, False, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 2)
        self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST = (data,), ()
        seed_all_rng(3)
        self.trainer = RamboTrainer(self.cfg)
        self.before = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}
        self.trainer.train()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def run(request, drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, Run(request.param, drawn, folder)


def stock_model(name, checkpoint=None):
    model = build_model(config(name, stock=True))
    if checkpoint:
        DetectionCheckpointer(model).load(str(checkpoint))
    return model


def test_the_scores_are_trained(run):
    name, run = run
    after = run.trainer.model.state_dict()
    scores = [k for k in after if k.endswith(("cls_score.weight", "objectness_logits.weight"))]
    assert scores and all(not torch.equal(after[k], run.before[k]) for k in scores)
    found = list(memories(run.trainer.model))
    assert len(found) == ARCHITECTURES[name].memories
    assert [int(memory.written) for memory in found] == [2] * len(found)


@pytest.mark.parametrize("score", SCORE_FUNCTIONS)
def test_every_proposal_is_ranked_with_its_own_label(score):
    """And the stock argument that weights losses holds."""
    model = build_model(config("faster_rcnn", False, "MODEL.RAMBO.SCORE", score))
    predictor = model.roi_heads.box_predictor
    (logits, deltas), proposals = captured(model, predictor, training_inputs())
    logits, classes = spread(logits), torch.cat([p.gt_classes for p in proposals])
    want = RamboCriterion(4, memory_length=0)(SCORE_FUNCTIONS[score](logits), classes)
    predictor.rambo_loss, predictor.loss_weight = RamboCriterion(4, memory_length=0), {}
    for weight in (1.0, 3.0):
        predictor.loss_weight["loss_cls"] = weight
        with EventStorage():
            loss = predictor.losses((logits, deltas), proposals)["loss_cls"]
        torch.testing.assert_close(loss, weight * want)


def test_every_anchor_of_the_rpn_is_ranked_with_its_own_label():
    model = build_model(config("rpn", False, "MODEL.RPN.LOSS_WEIGHT", 3.0))
    generator = model.proposal_generator
    arguments = list(captured(model, generator, training_inputs()))
    arguments[1] = [spread(logits) for logits in arguments[1]]
    ranked = []
    for scores, labels in pieces(*arguments[1:3]):
        ranked += [(scores[labels == 1], 0), (scores[labels == 0], 1)]
    scores = torch.cat([x for x, _ in ranked])[:, None]
    classes = torch.cat([torch.full(x.shape, label) for x, label in ranked])
    ignored = torch.stack(arguments[2]) < 0
    assert ignored.any() and 0 < (classes == 0).sum() < (classes == 1).sum()
    generator.rambo_loss = RamboCriterion(1, memory_length=0)
    with EventStorage():
        loss = generator.losses(*arguments)["loss_rpn_cls"]
    torch.testing.assert_close(loss, 3 * RamboCriterion(1, memory_length=0)(scores, classes))


def test_scalars(run):
    name, run = run
    latest = run.trainer.storage.latest()
    prefixes = {"cascade": [f"rambo/stage{i}" for i in range(3)], "rpn": ["rambo", "rambo/rpn"]}
    for prefix in prefixes.get(name, ["rambo"]):
        assert 0 <= latest[f"{prefix}/AP"][0] < 1
    assert "rambo/rpn/AP-object" in latest or name != "rpn"
    assert not any("/rambo/" in key for key in latest)


def test_the_ap_of_a_class_is_logged_under_its_name():
    criterion = RamboCriterion(4, class_names="abcd")
    with EventStorage() as storage:
        criterion(spread(torch.zeros(30, 4)), torch.tensor([1, 3, 4] * 10))
        names = {key for key in storage.latest() if key.startswith("rambo/AP-")}
    assert names == {"rambo/AP-b", "rambo/AP-d"}


def test_its_checkpoint_is_the_stock_models(run):
    name, run = run
    file = run.trainer.cfg.OUTPUT_DIR + "/model_final.pth"
    stock = stock_model(name)
    weights = torch.load(file, weights_only=False)["model"]
    incompatible = stock.load_state_dict(weights)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    assert_same_predictions(run.trainer.model, stock_model(name, file), training_inputs())
    run.trainer.model.train()


def test_initial_weights_are_the_stock_models(run):
    name, _ = run
    states = []
    for stock in (True, False):
        seed_all_rng(5)
        states.append(build_model(config(name, stock)).state_dict())
        states[-1]["stream"] = torch.rand(3)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())


# Detectron2 has it for R-CNNs alone.
@pytest.mark.parametrize("run", ["faster_rcnn"], indirect=True)
def test_test_time_augmentation(run):
    name, run = run
    cfg = run.cfg.clone()
    cfg.TEST.AUG = CfgNode({"ENABLED": True, "MIN_SIZES": (64, 96), "MAX_SIZE": 96, "FLIP": True})
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    models = [GeneralizedRCNNWithTTA(cfg, m.eval()) for m in (run.trainer.model, stock)]
    inputs = training_inputs(1)
    inputs[0]["image"] = inputs[0]["image"].byte()
    assert_same_predictions(*models, inputs)
    run.trainer.model.train()


def _traced(model, image):
    def infer(model, inputs):
        if hasattr(model, "roi_heads"):
            return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
        return model(inputs)

    adapter = TracingAdapter(model.eval(), [{"image": image}], infer)
    with torch.no_grad():
        return torch.jit.trace(adapter, (image,), check_trace=False)


# The RPN takes no part in what inference runs for the loss.
@pytest.mark.parametrize("run", [name for name in ARCHITECTURES if name != "rpn"], indirect=True)
def test_tracing_works_as_the_stock_models(run):
    name, run = run
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    model = copy.deepcopy(run.trainer.model)
    for each in (model, stock):  # calibrated, so that the weights of a calibration are traced too
        each.eval()
        number = Classifier(each).num_classes
        shift = torch.linspace(-1, 1, number, dtype=torch.float64)
        Classifier(each).apply(Rescaling(torch.tensor(1.7).double(), shift))
    image = training_inputs(1)[0]["image"]
    theirs, ours = _traced(stock, image), _traced(model, image)
    # Fewer proposals than on the image it was traced on, and more.
    for size in (image.shape[-2:], (16, 32), (160, 128)):
        image = torch.nn.functional.interpolate(image[None], size)[0]
        with torch.no_grad():
            pairs = list(zip(ours(image), theirs(image), strict=True))
        assert len(pairs[0][0]) > 0
        assert all(torch.equal(a, b) for a, b in pairs)


# Detectron2 does not script the stock twins of the others, or as faster_rcnn.
@pytest.mark.parametrize("run", ["faster_rcnn", "retinanet", "rpn"], indirect=True)
def test_scripting_works_as_the_stock_models(run):
    name, run = run
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, "pred_boxes": Boxes}
    fields |= {"scores": torch.Tensor, "pred_classes": torch.Tensor}
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    image, results = training_inputs(1)[0]["image"], []
    for model in (stock, run.trainer.model):
        scripted = scripting_with_instances(model.eval(), fields)
        call = scripted.inference if hasattr(model, "roi_heads") else scripted.forward
        arguments = {"do_postprocess": False} if hasattr(model, "roi_heads") else {}
        with torch.no_grad():
            results.append(call([{"image": image}], **arguments)[0])
    run.trainer.model.train()
    assert len(results[0].scores) > 0
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].scores, results[1].scores)


def rpn_step(stock, *opts, iteration=0):
    torch.manual_seed(0)
    model = build_model(config("rpn", stock, *opts)).train()
    torch.manual_seed(1)
    with EventStorage(iteration):
        loss = model(training_inputs())["loss_rpn_cls"]
    loss.backward()
    return torch.cat(
        [
            loss.detach()[None],
            model.proposal_generator.rpn_head.objectness_logits.weight.grad.flatten(),
        ]
    )


def test_the_rpns_stock_loss_is_mixed_in_with_its_gradient():
    plain, stock = rpn_step(False), rpn_step(True)
    mixed = rpn_step(False, "MODEL.RAMBO.CE_WEIGHT", 0.25)
    torch.testing.assert_close(mixed, plain + 0.25 * stock, rtol=1e-4, atol=1e-6)
    half = rpn_step(False, "MODEL.RAMBO.CE_WARMUP", 10, iteration=5)
    torch.testing.assert_close(half, (plain + stock) / 2, rtol=1e-4, atol=1e-6)
