"""Every architecture trains with RaMBO's loss and otherwise equals the stock model.

test_matrix.py has whole runs through the command line.
"""

import copy
import importlib

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from rambo_det.engine.user_code import import_user_code
from rambo_det.modeling import RamboCriterion
from rambo_det.modeling.classifier import Classifier, Rescaling
from rambo_det.modeling.scores import SCORE_FUNCTIONS

from .architectures import (
    ARCHITECTURES,
    assert_same_predictions,
    build,
    captured,
    config,
    memories,
    pieces,
    spread,
    training_losses,
)
from .forked import REPOSITORY
from .models import training_inputs


@pytest.fixture(scope="module", params=ARCHITECTURES)
def twins(request):
    """Returns the name, a model after one training step, and the stock model with its weights."""
    name = request.param
    model, stock = build(name), build(name, stock=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sum(training_losses(model, training_inputs(outlines=True))[0].values()).backward()
    optimizer.step()
    stock.load_state_dict(model.state_dict())  # strict: both have the same keys
    return name, model.eval(), stock.eval()


def test_a_step_trains_the_scores_and_is_remembered(twins):
    name, model, _ = twins
    before, after = build(name).state_dict(), model.state_dict()
    scores = [k for k in after if k.endswith(("cls_score.weight", "objectness_logits.weight"))]
    assert scores and all(not torch.equal(after[k], before[k]) for k in scores)
    found = [int(memory.written) for memory in memories(model)]
    assert found == [1] * ARCHITECTURES[name].memories


def test_it_predicts_as_the_stock_model(twins):
    _, model, stock = twins
    assert_same_predictions(model, stock, training_inputs())


ONE_BOX = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
CASES = [
    *((name, ()) for name in (*ARCHITECTURES, "fcos")),
    ("faster_rcnn", ONE_BOX),
    ("c4", ONE_BOX),
]


@pytest.mark.parametrize("name, opts", CASES)
def test_initial_weights_and_all_but_the_class_loss_are_the_stock_models(name, opts):
    models, streams = [], []
    for stock in (True, False):
        models.append(build(name, stock, *opts))
        streams.append(torch.rand(3))
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys() and torch.equal(*streams)
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    batches = [training_inputs(2, outlines=True), training_inputs(1, outlines=True)]
    if not hasattr(models[0], "match_anchors"):  # v0.6's FCOS needs an object in every image
        batches.insert(0, training_inputs(empty=True, outlines=True))
    for inputs in batches:
        (theirs, their_scalars), (ours, scalars) = (training_losses(m, inputs) for m in models)
        replaced = {k for k in ours if "cls" in k and (k != "loss_rpn_cls" or name == "rpn")}
        assert theirs.keys() == ours.keys() and replaced
        for key in ours.keys() - replaced:
            torch.testing.assert_close(ours[key], theirs[key])
        for key in their_scalars.keys() - {"keypoint_head/num_fg_samples"}:  # NaN without objects
            assert scalars[key] == their_scalars[key] or key == "kpts_num_skipped_batches", key
        models[1].zero_grad(set_to_none=True)
        sum(ours.values()).backward()  # the graph is connected, without objects too
        assert all(p.grad is not None for p in models[1].parameters() if p.requires_grad)
        if not inputs[0]["instances"].gt_classes.numel():
            assert all(ours[key] == 0 for key in replaced)
            assert not any(key.startswith("rambo") and "AP" in key for key in scalars)


@pytest.mark.parametrize("score", SCORE_FUNCTIONS)
def test_every_proposal_is_ranked_with_its_own_label(score):
    """The stock argument ``loss_weight`` also scales the loss."""
    model = build("faster_rcnn", False, "MODEL.RAMBO.SCORE", score)
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


ONE_STAGE = [*(("retinanet", "loss_cls", score) for score in SCORE_FUNCTIONS)]
ONE_STAGE += [("fcos", "loss_fcos_cls", "logits"), ("rpn", "loss_rpn_cls", "logits")]


@pytest.mark.parametrize("name, key, score", ONE_STAGE)
def test_every_anchor_is_ranked_with_its_own_label(name, key, score):
    """The loss equals that of a batch which is assembled image by image and level by level."""
    keys = ["MODEL.RPN.LOSS_WEIGHT", 3.0, "MODEL.RAMBO.SCORE", score]
    model = build(name, False, *(keys[:2] if name == "rpn" else keys))
    part = model.proposal_generator if name == "rpn" else model
    arguments = list(captured(model, part, training_inputs()))
    arguments[1] = [spread(logits) for logits in arguments[1]]
    number = part.rambo_loss.num_classes
    part.rambo_loss = RamboCriterion(number, memory_length=0)
    with EventStorage():
        loss = part.losses(*arguments)[key]
    ranked = [(scores[x >= 0], x[x >= 0]) for scores, x in pieces(*arguments[1:3])]
    scores, labels = (torch.cat(x) for x in zip(*ranked, strict=True))
    assert len(scores) < torch.stack(arguments[2]).numel() or name == "fcos", "none is ignored"
    if name == "rpn":  # 1 is an object, 0 background
        scores, labels, loss = scores[:, None], 1 - labels, loss / 3
    scores = SCORE_FUNCTIONS[score](torch.nn.functional.pad(scores, (0, 1)))  # background has 0
    torch.testing.assert_close(loss, RamboCriterion(number, memory_length=0)(scores, labels))


def _scored_retinanet(score):
    model = build("retinanet", False, "MODEL.RAMBO.SCORE", score).eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.2)  # a new one has less
    return model


@pytest.mark.parametrize("score", SCORE_FUNCTIONS)
def test_a_retinanet_scores_boxes_as_it_ranks_them(score):
    model, image = _scored_retinanet(score), training_inputs(1)[0]["image"]
    captured = []
    model.head.register_forward_hook(lambda *x: captured.extend(x[2][0]))
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    logits = torch.cat([x[0].unflatten(0, (-1, 4)).movedim(1, -1).flatten(0, 2) for x in captured])
    softmax = torch.nn.functional.pad(logits, (0, 1)).softmax(dim=1)[:, :-1]
    scores = logits.sigmoid() if score == "logits" else softmax
    torch.testing.assert_close(found.scores.max(), scores.max())
    distances = (scores.T[found.pred_classes] - found.scores[:, None]).abs().amin(dim=1)
    assert len(found) > 20 and distances.max() < 1e-6
    assert (logits.sigmoid() - softmax).abs().max() > 0.01  # so both kinds of scores differ
    traced = _traced(_scored_retinanet(score), image)
    fields = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
    with torch.no_grad():
        (scripted,) = scripting_with_instances(_scored_retinanet(score), fields)([{"image": image}])
        assert any(torch.equal(x, found.scores) for x in traced(image))
    assert torch.equal(scripted.scores, found.scores)
    # With a gradient too, and in training mode, as for pictures of detections during the training.
    (again,) = model([{"image": image}])
    again["instances"].scores.sum().backward()
    assert torch.equal(again["instances"].scores, found.scores)
    assert model.head.cls_score.weight.grad.abs().max() > 0
    images = model.preprocess_image([{"image": image}])
    features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
    with torch.no_grad():
        model.train()
        (again,) = model.forward_inference(images, features, model.head(features))
    torch.testing.assert_close(again.scores, found.scores)


def test_the_warm_up_of_a_retinanet_trains_the_probabilities_of_its_softmax():
    model = _scored_retinanet("log_odds").train()
    model.rambo_loss.ce_warmup = 10  # at iteration 0, the stock loss is trained alone
    arguments, losses = list(captured(model, model, training_inputs())), []
    model.rambo_score = "logits"  # ``losses`` gets the head's logits, as those of the stock model
    stock = captured(model, model, training_inputs())[1]
    assert all(map(torch.equal, arguments[1], stock))
    logits = [spread(x).detach().requires_grad_() for x in arguments[1]]
    softmax = [torch.nn.functional.pad(x, (0, 1)).softmax(dim=-1)[..., :-1] for x in logits]
    for score, arguments[1] in (("log_odds", logits), ("logits", [p.logit() for p in softmax])):
        model.rambo_score, model.loss_normalizer = score, 100
        with EventStorage():
            losses.append(model.losses(*arguments)["loss_cls"])
    # The model of the example has this loss alone.
    import_user_code([str(REPOSITORY / "examples" / "softmax_retinanet.py")])
    model = build("retinanet", False, "MODEL.META_ARCHITECTURE", "SoftmaxRetinaNet")
    model.loss_normalizer, arguments[1] = 100, logits
    with EventStorage():
        losses.append(model.losses(*arguments)["loss_cls"])
    want, *got = ([loss, *torch.autograd.grad(loss, logits, retain_graph=True)] for loss in losses)
    torch.testing.assert_close(got, [want, want], rtol=1e-4, atol=1e-4)  # p.logit() rounds


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_the_focal_loss_runs_on_positives_alone(name, monkeypatch):
    model = build(name)
    sizes, module = [], importlib.import_module(type(model).__mro__[2].__module__)
    real = module.sigmoid_focal_loss_jit
    spy = lambda x, *args, **kwargs: sizes.append(x.numel()) or real(x, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(module, "sigmoid_focal_loss_jit", spy)
    labels = torch.stack(captured(model, model, training_inputs())[2])
    used = ((labels >= 0) & (labels < 4)).any(dim=0).sum().item()  # positive in any of the images
    assert sizes == [used * len(labels) * 4] and 0 < used < labels.shape[1] / 2


def test_autocast_leaves_the_ranking_of_a_dense_detector_in_float32():
    model, calls = build("retinanet"), []
    torch.nn.init.normal_(model.head.cls_score.weight)  # a new model's logits hardly differ
    model.rambo_loss.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = training_losses(model)
    ((logits, labels, *_),) = calls
    want = RamboCriterion(4, memory_length=0)(logits.detach().float(), labels)
    assert logits.dtype == torch.bfloat16 and torch.equal(losses["loss_cls"].detach(), want)


# Detectron2 has test-time augmentation for R-CNNs only.
@pytest.mark.parametrize("twins", ["faster_rcnn"], indirect=True)
def test_test_time_augmentation(twins):
    name, *models = twins
    cfg = config(name)
    cfg.TEST.AUG = CfgNode({"ENABLED": True, "MIN_SIZES": (64, 96), "MAX_SIZE": 96, "FLIP": True})
    inputs = training_inputs(1)
    inputs[0]["image"] = inputs[0]["image"].byte()
    assert_same_predictions(*(GeneralizedRCNNWithTTA(cfg, model) for model in models), inputs)


def _traced(model, image):
    def infer(model, inputs):
        if hasattr(model, "roi_heads"):
            return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
        return model(inputs)

    adapter = TracingAdapter(model, [{"image": image}], infer)
    with torch.no_grad():
        return torch.jit.trace(adapter, (image,), check_trace=False)


# "rpn" is left out, because its inference runs no code for the loss.
@pytest.mark.parametrize("twins", [name for name in ARCHITECTURES if name != "rpn"], indirect=True)
def test_tracing_works_as_the_stock_models(twins):
    models = copy.deepcopy(twins[1:])
    for model in models:  # so that calibrated weights are traced too
        shift = torch.linspace(-1, 1, Classifier(model).num_classes, dtype=torch.float64)
        Classifier(model).apply(Rescaling(torch.tensor(1.7).double(), shift))
    image = training_inputs(1)[0]["image"]
    ours, theirs = (_traced(model, image) for model in models)
    # The small image has fewer proposals than the traced image, the large one more.
    for size in (image.shape[-2:], (16, 32), (160, 128)):
        image = torch.nn.functional.interpolate(image[None], size)[0]
        with torch.no_grad():
            pairs = list(zip(ours(image), theirs(image), strict=True))
        assert len(pairs[0][0]) > 0
        assert all(torch.equal(a, b) for a, b in pairs)


# Detectron2 cannot script the other stock models, or scripts them in the same way as these.
@pytest.mark.parametrize("twins", ["faster_rcnn", "retinanet", "rpn"], indirect=True)
def test_scripting_works_as_the_stock_models(twins):
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, "pred_boxes": Boxes}
    fields |= {"scores": torch.Tensor, "pred_classes": torch.Tensor}
    image, results = training_inputs(1)[0]["image"], []
    for model in twins[1:]:
        scripted = scripting_with_instances(model, fields)
        call = scripted.inference if hasattr(model, "roi_heads") else scripted.forward
        arguments = {"do_postprocess": False} if hasattr(model, "roi_heads") else {}
        with torch.no_grad():
            results.append(call([{"image": image}], **arguments)[0])
    assert len(results[0].scores) > 0
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].scores, results[1].scores)
