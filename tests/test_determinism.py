"""One seed on one CPU gives the same losses, without nondeterministic torch operations.

test_resume.py checks that two processes of one seed make the same steps with any data workers.
"""

import pytest
import torch

from rambo_det import RamboLoss
from rambo_det.losses import recall_loss

from .strategies import batch, grad_of, same


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def two_steps(**kwargs):
    loss = RamboLoss(4, memory_length=2, **kwargs)
    results = []
    for seed in range(2):
        scores, gt = batch(seed=seed)
        scores.requires_grad_()
        value = loss(scores, gt)
        value.backward()
        results += [value.detach(), scores.grad]
    return results


@pytest.mark.parametrize("kwargs", [{}, {"lambda_": 0.5}, {"beta": 0.0}])
def test_the_loss_and_its_gradient(kwargs, deterministic):
    ours = two_steps(**kwargs)
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(ours, two_steps(**kwargs), strict=True))


def test_the_recall_loss(deterministic):
    scores, gt = batch(seed=1)
    first, second = (grad_of(recall_loss, scores[:, 0], gt == 0) for _ in range(2))
    assert torch.equal(first, second) and first.any()


@pytest.mark.parametrize("architecture", ["faster_rcnn", "retinanet", "cascade", "c4", "rpn"])
def test_a_training_step(architecture, deterministic):
    pytest.importorskip("detectron2")
    from .architectures import build, training_losses

    results = []
    for _ in range(2):
        model = build(architecture)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            losses, _ = training_losses(model)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            results.append({k: v.detach() for k, v in losses.items()})
        results.append(model.state_dict())
    assert all(map(same, results[:3], results[3:]))
