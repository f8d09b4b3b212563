"""The one-stage adapters: what is ranked, what is left to the stock loss, what memory it takes."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

import rambo_det
from rambo_det.errors import InputError
from rambo_det.modeling import RamboCriterion

from .architectures import captured, pieces, spread
from .models import CONFIGS, small_cfg, training_inputs

RETINANET = "quickstart/retinanet_rambo.yaml"
CLASS_LOSS = {"retinanet": "loss_cls", "fcos": "loss_fcos_cls"}


def build(name, stock=False):
    """The quickstart's model of an architecture, or its stock twin; equal initial weights."""
    seed_all_rng(2)
    if name == "retinanet":
        return build_model(small_cfg("quickstart/retinanet_focal.yaml" if stock else RETINANET))
    file = CONFIGS / "lazy" / "quickstart" / ("fcos_focal.py" if stock else "fcos_rambo.py")
    return instantiate(LazyConfig.load(str(file)).model)


def losses_of(model, inputs):
    with EventStorage() as storage:
        return model(inputs), storage.latest()


@pytest.mark.parametrize("name", CLASS_LOSS)
def test_all_but_the_class_loss_is_the_stock_models(name):
    models = [build(name, stock) for stock in (True, False)]
    batches = [training_inputs(), training_inputs(1)]
    if not hasattr(models[0], "match_anchors"):  # v0.6's FCOS: needs an object in every image
        batches.append(training_inputs(empty=True))
    for inputs in batches:
        (stock, stock_scalars), (ours, scalars) = (losses_of(m, inputs) for m in models)
        assert stock.keys() == ours.keys()
        for key in stock.keys() - {CLASS_LOSS[name]}:
            torch.testing.assert_close(ours[key], stock[key])
        assert scalars["num_pos_anchors"] == stock_scalars["num_pos_anchors"]
        assert models[0].loss_normalizer == models[1].loss_normalizer
        models[1].zero_grad(set_to_none=True)
        sum(ours.values()).backward()  # connected, without a positive too
        assert all(p.grad is not None for p in models[1].head.parameters())


@pytest.mark.parametrize("name", CLASS_LOSS)
def test_the_focal_loss_runs_on_positives_alone(name, monkeypatch):
    model = build(name)
    sizes, module = [], __import__(type(model).__mro__[1].__module__, fromlist=["x"])
    real = module.sigmoid_focal_loss_jit
    spy = lambda x, *args, **kwargs: sizes.append(x.numel()) or real(x, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(module, "sigmoid_focal_loss_jit", spy)
    labels = torch.stack(captured(model, model, training_inputs())[2])
    positive = ((labels >= 0) & (labels < 4)).sum().item()
    assert len(sizes) == 1 and 0 < sizes[0] <= positive * len(labels) * 4 < labels.numel()


@pytest.mark.parametrize("name", CLASS_LOSS)
def test_every_anchor_is_ranked_with_its_own_label(name):
    """The loss of a batch that is put together image by image and level by level."""
    model = build(name)
    arguments = list(captured(model, model, training_inputs()))
    arguments[1] = [spread(logits) for logits in arguments[1]]
    model.rambo_loss = RamboCriterion(4, memory_length=0)
    with EventStorage():
        loss = model.losses(*arguments)[CLASS_LOSS[name]]
    ranked = [(scores[x >= 0], x[x >= 0]) for scores, x in pieces(*arguments[1:3])]
    scores, classes = (torch.cat(x) for x in zip(*ranked, strict=True))
    torch.testing.assert_close(loss, RamboCriterion(4, memory_length=0)(scores, classes))


def test_ignored_anchors_are_not_ranked():
    model = build("retinanet")
    anchors, logits, labels, deltas, boxes = captured(model, model, training_inputs())
    ignored = torch.stack(labels) < 0
    assert ignored.any()
    model.rambo_loss.memory.written.zero_()
    values = []
    for shift in (0.0, 50.0):
        flat = torch.cat([x.detach() for x in logits], 1)
        flat[ignored] += shift
        flat.requires_grad_()
        model.rambo_loss.eval()
        with EventStorage():
            loss = model.losses(anchors, [flat], labels, deltas, boxes)["loss_cls"]
        (grad,) = torch.autograd.grad(loss, flat)
        assert grad[ignored].eq(0).all() and grad[~ignored].ne(0).any()
        values.append(loss.item())
    assert values[0] == values[1]


def test_the_loss_is_not_divided_by_the_number_of_positives():
    values = []
    for normalizer in (1.0, 1e6):
        model = build("retinanet")
        model.loss_normalizer = normalizer
        values.append(losses_of(model, training_inputs())[0])
    assert values[0]["loss_cls"] == values[1]["loss_cls"]
    assert values[0]["loss_box_reg"] > values[1]["loss_box_reg"]


def test_memory_is_bounded_at_full_coco_size():
    """τ batches of 2 images take what the config says, whatever their number of scores."""
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "retinanet_rambo.yaml"))
    node = cfg.MODEL.RAMBO
    loss = RamboCriterion.from_cfg(cfg, cfg.MODEL.RETINANET.NUM_CLASSES)
    memory = loss.memory

    def size():
        return sum(b.numel() * b.element_size() for b in memory.tensors().values())

    bound = 10 * node.MEMORY_LENGTH * node.MEMORY_SIZE
    counts = 8 * 2
    whole_batch = 3.2e7 * 8  # scores and classes of 2 images x 200 000 anchors x 80 classes
    assert size() == bound + counts < 1.2 * 2**20 < whole_batch / 200
    before = size()
    for anchors in (10, 10_000):  # far fewer scores than a batch of COCO, far more than are kept
        loss(torch.randn(anchors, 80, requires_grad=True), torch.randint(78, 81, (anchors,)))
    assert size() == before and int(memory.written) == 2


def test_autocast_leaves_the_ranking_in_float32():
    model = build("retinanet")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = losses_of(model, training_inputs())
    assert losses["loss_cls"].dtype == torch.float32 and 0 < losses["loss_cls"] < 2


def test_softmax_scores_are_refused():
    with pytest.raises(InputError, match="MODEL.RAMBO.SCORE 'softmax': .*RamboRetinaNet.*sigmoid"):
        build_model(small_cfg(RETINANET, "MODEL.RAMBO.SCORE", "softmax"))
    with pytest.raises(InputError, match="MODEL.RAMBO.MARGIN"):
        build_model(small_cfg(RETINANET, "MODEL.RAMBO.MARGIN", -1.0))
