"""Every key of MODEL.RAMBO reaches every loss of every architecture."""

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.modeling import build_model

from rambo_det import RamboLoss
from rambo_det.modeling import RamboCriterion

from .architectures import ARCHITECTURES, config
from .models import CONFIGS

# Keys of the config, and what they stand for.
KEYS = [
    (
        {"MARGIN": 0.25, "LAMBDA_RULE": "fixed", "LAMBDA": 7.0, "BETA": 0.125, "MEMORY_LENGTH": 2,
         "MEMORY_SIZE": 16, "LOSS_WEIGHT": 5.0},
        {"margin": 0.25, "lambda_": 7.0, "beta": 0.125, "memory_length": 2, "memory_size": 16},
    ),
    ({"LIFT": 0.5, "BETA": 1.0, "MEMORY_LENGTH": 0, "LOSS_WEIGHT": 5.0},
     {"lift": 0.5, "beta": 1.0, "memory_length": 0, "margin": 0.5}),
    ({"LAMBDA_RULE": "each", "LIFT": 4.0, "LOSS_WEIGHT": 5.0}, {"each": True, "lift": 4.0,
     "memory_length": 4}),
]  # fmt: skip


def assert_same(criterion, want):
    """Losses and gradients of five batches in a row; the weight is 5."""
    for _ in range(5):
        scores = [torch.randn(40, criterion.num_classes).requires_grad_()]
        scores += [scores[0].detach().clone().requires_grad_()]
        classes = torch.randint(-1, criterion.num_classes + 1, (40,))
        ours, theirs = criterion(scores[0], classes), 5 * want(scores[1], classes)
        torch.testing.assert_close(ours, theirs)
        (ours + theirs).backward()
        torch.testing.assert_close(scores[0].grad, scores[1].grad)


@pytest.mark.parametrize("keys, arguments", KEYS, ids=["fixed", "lift", "each"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_of_the_config(name, keys, arguments):
    pairs = [x for key, value in keys.items() for x in (f"MODEL.RAMBO.{key}", value)]
    model = build_model(config(name, False, *pairs))
    criteria = [module for module in model.modules() if isinstance(module, RamboCriterion)]
    assert len(criteria) == ARCHITECTURES[name].memories
    for criterion in criteria:
        assert_same(criterion, RamboLoss(criterion.num_classes, **arguments))


@pytest.mark.parametrize("name", ["RamboFCOS", "RamboRetinaNet"])
def test_arguments_of_a_lazy_config(name):
    file = {"RamboFCOS": "quickstart/fcos_rambo.py", "RamboRetinaNet": "retinanet_rambo.py"}[name]
    model = LazyConfig.load(str(CONFIGS / "lazy" / file)).model
    model.num_classes = 4
    model.rambo_loss = LazyCall(RamboCriterion)(num_classes=4, weight=5.0, **KEYS[0][1])
    assert_same(instantiate(model).rambo_loss, RamboLoss(4, **KEYS[0][1]))
