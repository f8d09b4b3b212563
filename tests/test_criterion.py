"""RamboCriterion: the configured loss in every architecture, and its mix with the stock loss."""

import copy
import re
from inspect import signature

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from rambo_det import (
    RamboCascadeROIHeads,
    RamboCriterion,
    RamboFastRCNNOutputLayers,
    RamboLoss,
    RamboRetinaNet,
    RamboROIHeads,
    RamboRPN,
    add_rambo_config,
)
from rambo_det.data.shapes import register_shapes
from rambo_det.errors import InputError
from rambo_det.modeling.scores import log_odds

from .architectures import ARCHITECTURES, build, config, training_losses
from .models import CONFIGS, QUICKSTART, small_cfg, training_inputs

# Config keys, and the arguments of RamboLoss that they set.
KEYS = {
    "fixed": (
        {"MARGIN": 0.25, "LAMBDA": 7.0, "BETA": 0.125, "MEMORY_LENGTH": 2,
         "MEMORY_SIZE": 16},
        {"margin": 0.25, "lambda_": 7.0, "beta": 0.125, "memory_length": 2, "memory_size": 16},
    ),
    "no λ": ({"LAMBDA": 0.0}, {}),
    "one list": ({"BETA": 1.0, "MEMORY_LENGTH": 4}, {"beta": 1.0, "memory_length": 4}),
}  # fmt: skip


def assert_same(criterion, want):
    """Checks that losses and gradients of five successive batches agree; the loss weight is 5."""
    for _ in range(5):
        scores = [torch.randn(40, criterion.num_classes).requires_grad_()]
        scores += [scores[0].detach().clone().requires_grad_()]
        classes = torch.randint(-1, criterion.num_classes + 1, (40,))
        ours, theirs = criterion(scores[0], classes), 5 * want(scores[1], classes)
        torch.testing.assert_close(ours, theirs)
        (ours + theirs).backward()
        torch.testing.assert_close(scores[0].grad, scores[1].grad)


@pytest.mark.parametrize("rule", KEYS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_key_of_the_config_reaches_every_loss(name, rule):
    keys, arguments = KEYS[rule]
    keys = {"MEMORY_LENGTH": 0, **keys, "LOSS_WEIGHT": 5.0}
    pairs = [x for key, value in keys.items() for x in (f"MODEL.RAMBO.{key}", value)]
    model = build(name, False, *pairs)
    criteria = [module for module in model.modules() if isinstance(module, RamboCriterion)]
    assert len(criteria) == ARCHITECTURES[name].memories
    for criterion in criteria:
        assert_same(criterion, RamboLoss(criterion.num_classes, **arguments))


@pytest.mark.parametrize("file", ["quickstart/fcos_rambo.py", "retinanet_rambo.py"])
def test_arguments_of_a_lazy_config(file):
    model = LazyConfig.load(str(CONFIGS / "lazy" / file)).model
    model.num_classes, arguments = 4, KEYS["fixed"][1]
    model.rambo_loss = LazyCall(RamboCriterion)(num_classes=4, weight=5.0, **arguments)
    model = instantiate(model)
    assert_same(model.rambo_loss, RamboLoss(4, **arguments))
    assert model.rambo_loss.name == ("loss_fcos_cls" if "fcos" in file else "loss_cls")


def test_the_scalars_of_an_rpn_have_its_name_whatever_criterion_it_gets():
    rpn = build("rpn").proposal_generator
    cfg = config("rpn")
    arguments = RamboRPN.from_config(cfg, build_backbone(cfg).output_shape())
    made = RamboRPN(**{**arguments, "rambo_loss": RamboCriterion(1, beta=0.25)}).rambo_loss
    for name in ("prefix", "name", "class_names"):
        assert getattr(made, name) == getattr(rpn.rambo_loss, name)
    assert made.prefix == "rambo/rpn" and made.class_names == ["object"]
    assert made.spec.beta == 0.25


class OwnLayers(RamboFastRCNNOutputLayers):
    pass


STAGES = [f"loss_cls_stage{k}" for k in range(3)]
LAYERS = (FastRCNNOutputLayers, OwnLayers, type("Other", (FastRCNNOutputLayers,), {}))


@pytest.mark.parametrize("parent", [RamboROIHeads, RamboCascadeROIHeads])
@pytest.mark.parametrize("layers", LAYERS)
def test_heads_of_a_user_keep_the_box_predictor_that_they_make(parent, layers):
    """Stock output layers become this package's, with the settings that the user gave them."""

    class OwnHeads(parent):
        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            made = super()._init_box_head(cfg, input_shape)
            several = made.get("box_predictors")
            heads = made["box_heads"] if several else [made["box_head"]]
            transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
            own = {"box2box_transform": transform, "test_score_thresh": 0.25}
            own = [layers(cfg, head.output_shape, **own) for head in heads]
            return made | ({"box_predictors": own} if several else {"box_predictor": own[0]})

    cfg = config("cascade" if parent is RamboCascadeROIHeads else "faster_rcnn")
    shapes = build_backbone(cfg).output_shape()
    if layers is LAYERS[2]:
        with pytest.raises(InputError, match="OwnHeads got a Other: derive it from rambo_det.Ram"):
            OwnHeads(cfg, shapes)
        return
    predictor = OwnHeads(cfg, shapes).box_predictor
    made = list(predictor) if isinstance(predictor, torch.nn.ModuleList) else [predictor]
    expected = RamboFastRCNNOutputLayers if layers is FastRCNNOutputLayers else layers
    assert {(type(one), one.test_score_thresh) for one in made} == {(expected, 0.25)}
    assert [one.rambo_loss.name for one in made] == (STAGES if len(made) > 1 else ["loss_cls"])


@pytest.mark.parametrize(
    "name, heads", [("mask_rcnn_fpn", RamboROIHeads), ("cascade_rcnn", RamboCascadeROIHeads)]
)
def test_heads_of_a_lazyconfig_refuse_stock_box_predictors(name, heads):
    """They would train with cross entropy."""
    node = get_config(f"common/models/{name}.py").model.roi_heads
    node._target_ = heads
    with pytest.raises(InputError, match="got a FastRCNNOutputLayers: .* set box_predictor._t"):
        instantiate(node)
    predictors = node.box_predictors if name == "cascade_rcnn" else [node.box_predictor]
    for each in predictors:
        each._target_ = RamboFastRCNNOutputLayers
    made = instantiate(node).box_predictor
    names = [each.rambo_loss.name for each in (made if len(predictors) > 1 else [made])]
    assert names == (STAGES if len(predictors) > 1 else ["loss_cls"])


def test_heads_whose_subclass_sets_a_stock_predictor():
    class Heads(RamboROIHeads):
        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape)
            self.box_predictor = FastRCNNOutputLayers(cfg, self.box_head.output_shape)

    model = build("faster_rcnn")
    cfg, shape = config("faster_rcnn"), model.backbone.output_shape()
    model.roi_heads = Heads(cfg, shape)
    with pytest.raises(InputError, match="Heads got a FastRCNNOutputLayers: derive it from"):
        model.train()


def test_a_criterion_for_another_number_of_classes():
    """A LazyConfig may have it."""
    model = get_config("common/models/retinanet.py").model
    for node, target in (
        (model, RamboRetinaNet),
        (get_config("common/models/mask_rcnn_fpn.py").model.roi_heads.box_predictor,
         RamboFastRCNNOutputLayers),
        (get_config("common/models/mask_rcnn_fpn.py").model.proposal_generator, RamboRPN),
    ):  # fmt: skip
        node._target_ = target
        node.rambo_loss = LazyCall(RamboCriterion)(num_classes=7)
        with pytest.raises(InputError, match=r"rambo_loss.num_classes is 7, .* set it to (80|1)$"):
            instantiate(node)


def test_heads_that_do_not_fit_a_c4_model():
    cfg = small_cfg("quickstart/faster_rcnn_c4_rambo.yaml")
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NAME = "RamboROIHeads", ""
    with pytest.raises(InputError, match="set MODEL.ROI_HEADS.NAME to RamboRes5ROIHeads"):
        build_model(cfg)


def of_config(*opts, num_classes=4):
    return RamboCriterion.from_cfg(small_cfg(QUICKSTART, *opts), num_classes)


def test_a_criterion_has_the_defaults_of_the_config(catalogs):
    cfg = get_cfg()
    add_rambo_config(cfg)
    plain, configured = RamboCriterion(4), RamboCriterion.from_cfg(cfg, 4)
    for name in ("weight", "global_ranking", "ce_warmup", "spec"):
        assert getattr(plain, name) == getattr(configured, name), name
    assert plain.memory.length == configured.memory.length
    assert not of_config("MODEL.RAMBO.GLOBAL_RANKING", False).global_ranking
    # The dataset names four classes, so that seven classes have numbers as names.
    assert of_config(num_classes=7).class_names == list("0123456")
    register_shapes()
    cfg.DATASETS.TRAIN = "rambo_shapes_train"  # a string, as Detectron2 allows
    names = RamboCriterion.from_cfg(cfg, 4).class_names
    assert names == of_config().class_names and "star" in names
    # Detectron2's register_coco_instances gives the names when the data are loaded.
    cfg.DATASETS.TRAIN = ("not_loaded",)
    criterion = copy.deepcopy(RamboCriterion.from_cfg(cfg, 2))
    assert criterion.class_names == ["0", "1"]
    MetadataCatalog.get("not_loaded").thing_classes = ["a", "b"]
    assert criterion.class_names == ["a", "b"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("LAMBDA", -1.0), ("LAMBDA", float("inf")), ("MARGIN", -0.5), ("BETA", 1.5),
        ("BETA", float("nan")), ("MEMORY_LENGTH", -1), ("MEMORY_SIZE", 0), ("LOSS_WEIGHT", 0.0),
        ("CE_WARMUP", -1), ("SCORE", "entropy"), ("LAMBDA", "each"),
        ("MARGIN", None), ("BETA", "0.5"), ("MEMORY_LENGTH", "4"), ("LOSS_WEIGHT", None),
        ("CE_WARMUP", None),
    ],
)  # fmt: skip
def test_keys_out_of_range_are_named(key, value):
    cfg = small_cfg()
    cfg.MODEL.RAMBO[key] = value
    with pytest.raises(
        InputError, match=f"MODEL.RAMBO.{key} must be .*got {re.escape(repr(value))}"
    ):
        build_model(cfg)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_a_label_above_the_number_of_classes_is_named(name):
    """The stock loss raises an index error instead."""
    model, inputs = build(name), training_inputs()
    for item in inputs:
        item["instances"].gt_classes += 10
    with pytest.raises(InputError, match=r"gt_classes contains 1\d, but with 4 classes"):
        training_losses(model, inputs)


def test_names_of_another_number_of_classes_are_refused():
    with pytest.raises(InputError, match="class_names must have 3 entries, got 1"):
        RamboCriterion(3, class_names=["a"])


@pytest.mark.parametrize("iteration", [0, 40])
def test_the_memory_comes_back_with_a_resume_and_not_with_weights(iteration):
    """A training that starts from another training's weights remembers only its own batches."""
    scores, gt_classes = torch.randn(30, 3), torch.arange(30) % 4
    earlier, later = (RamboCriterion(3, memory_length=4) for _ in range(2))
    with EventStorage(39):
        earlier(scores.requires_grad_(), gt_classes)
    later.load_state_dict(earlier.state_dict())
    with EventStorage(), torch.no_grad():  # a validation loss starts no training
        later(scores, gt_classes)
    assert later.memory.written == 1
    with EventStorage(iteration):
        for _ in range(2):  # as with accumulated gradients
            later(scores, gt_classes)
    assert later.memory.written == (3 if iteration else 2)


# The warm-up with the stock loss


SHARED = {
    "faster_rcnn": ("loss_cls", "roi_heads.box_predictor.cls_score.bias"),
    "retinanet": ("loss_cls", "head.cls_score.bias"),
    "rpn": ("loss_rpn_cls", "proposal_generator.rpn_head.objectness_logits.bias"),
}


def step_of(name, stock, *opts, iteration=0):
    """Returns the loss of a training step and the gradient of a bias, joined in one tensor."""
    loss, bias = SHARED[name]
    model = build(name, stock, *opts)
    value = training_losses(model, iteration=iteration)[0][loss]
    value.backward()
    return torch.cat([value.detach()[None], model.get_parameter(bias).grad])


@pytest.mark.parametrize("name", SHARED)
def test_a_warm_up_starts_with_the_stock_loss_alone_and_ends_without_it(name):
    plain, stock = step_of(name, False), step_of(name, True)
    for iteration, share in ((0, 0.0), (5, 0.5), (10, 1.0)):
        warm = step_of(name, False, "MODEL.RAMBO.CE_WARMUP", 10, iteration=iteration)
        want = share * plain + (1 - share) * stock
        torch.testing.assert_close(warm, want, rtol=1e-4, atol=1e-6)


def test_outside_of_a_training_the_warm_up_is_over():
    loss = RamboCriterion(3, ce_warmup=10)
    with EventStorage(5):
        assert loss.stock_loss_weight() == 0.5
    assert loss.stock_loss_weight() == 0.0


def test_what_is_trained_and_what_boxes_are_scored_by_must_agree():
    box = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    arguments = {"input_shape": ShapeSpec(channels=8), "num_classes": 3, "box2box_transform": box}
    mixed = {"score": "logits", "rambo_loss": RamboCriterion(3, ce_warmup=10), **arguments}
    with pytest.raises(InputError, match="SCORE logits .* set .*USE_SIGMOID_CE to True"):
        RamboFastRCNNOutputLayers(**mixed)
    if "use_sigmoid_ce" not in signature(FastRCNNOutputLayers.__init__).parameters:
        return  # the v0.6 release
    with pytest.raises(InputError, match="USE_SIGMOID_CE .*SCORE log_odds .* to logits"):
        RamboFastRCNNOutputLayers(use_sigmoid_ce=True, **arguments)
    RamboFastRCNNOutputLayers(use_sigmoid_ce=True, **mixed)


def test_score_logits_predicts_by_sigmoid():
    predictor = build("faster_rcnn", False, "MODEL.RAMBO.SCORE", "logits").roi_heads.box_predictor
    logits = torch.randn(5, 5)
    (probs,) = predictor.predict_probs((logits, None), [range(5)])
    torch.testing.assert_close(probs, logits.sigmoid())


@pytest.mark.parametrize("columns", [2, 6])
@pytest.mark.parametrize("spread", [1, 8, 15])
def test_log_odds_against_float64(columns, spread):
    logits = torch.randn(500, columns) * spread
    logits = logits[logits.amax(dim=1) - logits.amin(dim=1) < 85].requires_grad_()
    z = logits.detach().double().requires_grad_()
    others = [torch.cat([z[:, :c], z[:, c + 1 :]], dim=1) for c in range(columns - 1)]
    want = z[:, :-1] - torch.stack([x.logsumexp(dim=1) for x in others], dim=1)
    got = log_odds(logits)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, logits, upstream, retain_graph=True)
    (want_grad,) = torch.autograd.grad(want, z, upstream.double())
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=1e-5)
    # Infinite logits are noticed: the loss refuses a score that is not finite.
    assert log_odds(torch.tensor([[torch.inf, 0.0]])).isnan().all()


def test_log_odds_are_finite_and_ordered():
    # Neither far apart logits nor the scale of mixed precision make the gradient infinite.
    for scale in (1, 2**16):
        far = (100 * torch.randn(500, 6)).requires_grad_()
        (log_odds(far) * scale).sum().backward()
        assert log_odds(far).isfinite().all() and far.grad.isfinite().all()
    try:
        torch.set_flush_denormal(True)
        assert log_odds(torch.tensor([[200.0, 0.0]])).isfinite().all()
    finally:
        torch.set_flush_denormal(False)
    # Where the softmax is not saturated, it gives the same order.
    mild = torch.randn(50, 4)
    probs = mild.double().softmax(1)[:, :-1].flatten()
    assert torch.equal(log_odds(mild.double()).flatten().argsort(), probs.argsort())
