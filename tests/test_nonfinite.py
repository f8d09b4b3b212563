"""Scores that are not finite: a run stops, and says which loss, class and iteration."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rambo_det import RamboLoss

from .architectures import config
from .models import CONFIGS, training_inputs, write_coco

NAN, INF = float("nan"), float("inf")
CLASSES = ("circle", "square", "triangle", "star")
# The layer whose scores go wrong, which of its outputs, and what is said of it.
CASES = {
    "faster_rcnn": ("roi_heads.box_predictor.cls_score", 2, "loss_cls", "triangle"),
    "c4": ("roi_heads.box_predictor.cls_score", 4, "loss_cls", "background"),
    "cascade": ("roi_heads.box_predictor.1.cls_score", 0, "loss_cls_stage1", "circle"),
    "retinanet": ("head.cls_score", 3, "loss_cls", "star"),
    "rpn": ("proposal_generator.rpn_head.objectness_logits", 0, "loss_rpn_cls", "object"),
}


class Spoil(HookBase):
    """Sets one output of a layer to a value at the beginning of a step."""

    def __init__(self, iteration, layer, output, value):
        self.iteration, self.layer, self.output, self.value = iteration, layer, output, value

    def before_step(self):
        if self.trainer.iter == self.iteration:
            layer = self.trainer.model.get_submodule(self.layer)
            with torch.no_grad():
                layer.bias[self.output] = self.value


@pytest.mark.parametrize(
    "architecture, value",
    [(name, NAN) for name in CASES] + [("faster_rcnn", INF), ("faster_rcnn", -INF), ("rpn", INF)],
)
def test_the_error_names_loss_class_and_iteration(architecture, value, tmp_path, catalogs):
    names = {"thing_classes": list(CLASSES)}
    register_coco_instances("nf_shapes", names, *write_coco(tmp_path / "data"))
    layer, output, loss, name = CASES[architecture]
    cfg = config(architecture, False, "DATASETS.TRAIN", ("nf_shapes",), "DATASETS.TEST", ())
    cfg.OUTPUT_DIR = str(tmp_path)
    seed_all_rng(1)
    trainer = DefaultTrainer(cfg)  # the stock one: nothing of it has to be ours
    trainer.register_hooks([Spoil(1, layer, output, value)])
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("Loss became infinite or NaN at iteration=1! ")
    assert f"! {loss}: " in message and f"of class {name} (" in message
    assert not [c for c in CLASSES if c != name and f"{c} (" in message]
    assert trainer.storage.latest()["total_loss"]  # of the step before
    for key, weight in trainer.model.state_dict().items():
        spoilt = key.startswith(layer)
        assert spoilt or weight.isfinite().all(), key


def test_fcos(catalogs):
    model = instantiate(LazyConfig.load(str(CONFIGS / "lazy/quickstart/fcos_rambo.py")).model)
    with torch.no_grad():
        model.head.cls_score.bias[1] = NAN
    message = r"at iteration=7! loss_fcos_cls: .* of class 1 \(\d+ of \d+\)$"
    with EventStorage(7), pytest.raises(FloatingPointError, match=message):
        model(training_inputs())


def test_many_classes_are_counted(catalogs):
    from rambo_det.modeling.criterion import RamboCriterion

    loss = RamboCriterion(1203)
    scores = torch.full((3, 1203), NAN)
    with pytest.raises(
        FloatingPointError, match=r"class 0 \(3 of 3\), .*4 \(3 of 3\) and 1198 more$"
    ):
        loss(scores, torch.tensor([0, 5, 1203]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_loss_alone_gives_nan_and_forgets_the_batch(value):
    loss = RamboLoss(4, memory_length=2)
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    spoilt = scores.clone()
    spoilt[5, 1] = value
    spoilt.requires_grad_()
    result = loss(spoilt, torch.tensor([0, 1, 2, 3, 4, -1]))
    result.backward()
    assert result.isnan() and spoilt.grad.isnan().any() and loss.memory.fill == 0
    assert loss(scores, torch.tensor([0, 1, 2, 3, 4, -1])).isfinite()
