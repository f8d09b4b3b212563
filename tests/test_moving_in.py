"""docs/moving-in.md: with converted parameters the loss gives the authors' published numbers."""

import json

import pytest
import torch

from rambo_det import RamboLoss
from rambo_det.losses import recall_loss

from .doc_pages import DOCS, ROOT, blocks

CASES = json.loads((ROOT / "tests" / "authors_cases.json").read_text())
# RamboLoss takes one class per row.
AP = [case for case in CASES if case["kind"] == "ap" and max(map(sum, case["targets"])) <= 1]
PAGE = DOCS / "moving-in.md"


@pytest.fixture(scope="module")
def our_lambda():
    scope = {}
    exec(blocks(PAGE, "python")[0], scope)
    return scope["our_lambda"]


def batch(case):
    """Returns (scores, gt_classes, number of classes present); a row takes its first class."""
    scores, targets = torch.tensor(case["scores"]), torch.tensor(case["targets"])
    gt_classes = torch.where(targets.any(1), targets.argmax(1), targets.shape[1])
    return scores, gt_classes, int(targets.any(0).sum())


@pytest.mark.parametrize("case", AP, ids=range(len(AP)))
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_mapped_parameters_give_the_published_numbers(case, weight, our_lambda):
    """Tests RamboLoss. In the authors' code, a loss weight acts like another λ."""
    scores, gt_classes, present = batch(case)
    n, c = scores.shape
    theirs = case["lambda_divided"] / weight  # theirs * weight is the λ of the case
    for beta, lambda_, grad, loss in (
        (0.0, our_lambda(theirs, n, present, weight), case["grad_per_class"], "loss_per_class"),
        (1.0, our_lambda(theirs, n * c, 1, weight), case["grad_flat"], "loss_flat"),
    ):
        leaf = scores.clone().requires_grad_()
        value = RamboLoss(c, lambda_=lambda_, margin=0.0, beta=beta)(leaf, gt_classes)
        (value * weight).backward()
        assert value.item() == pytest.approx(case[loss], abs=2e-5)
        want = torch.tensor(grad).view(n, c) * weight
        torch.testing.assert_close(leaf.grad, want, atol=1e-7 * weight, rtol=1e-5)


def test_the_default_rule_is_the_error_driven_update_of_ap_loss():
    """Chen et al., CVPR 2019: a positive is pulled up by (number of negatives above it) / rank / P,
    and each negative above it is pushed down by 1 / rank / P."""
    scores = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positive = torch.arange(60) < 12
    leaf = scores.float().double().requires_grad_()
    RamboLoss(1, margin=0.25)(leaf, (~positive).long()).backward()
    y = leaf.detach()[:, 0] - 0.25 * positive
    want = torch.zeros(60, dtype=torch.float64)
    for i in range(12):
        above = ~positive & (y >= y[i])
        rank = above.sum() + (positive & (y >= y[i])).sum()
        want[above] += 1 / rank / 12
        want[i] -= above.sum() / rank / 12
    torch.testing.assert_close(leaf.grad[:, 0], want)
    assert (want != 0).sum() > 20


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "recall_log"])
def test_recall_loss_is_theirs_but_for_the_number_of_queries(case):
    """The authors' summand is log(1 + (r - r⁺)/N * number of sequences), ours log(1 + r - r⁺)."""
    scores, targets = torch.tensor(case["scores"])[0], torch.tensor(case["targets"])[0]
    y = scores - case["margin"] * (targets - 0.5)
    r = (y[None] > y[:, None]).sum(1) + 1.0
    positive = targets > 0
    among = (y[positive][None] > y[positive][:, None]).sum(1) + 1.0
    missed = r[positive] - among
    published = torch.log1p(missed / len(scores)).mean().item()
    assert published == pytest.approx(case["loss_as_published"], abs=1e-5)
    ours = recall_loss(scores, targets, margin=case["margin"], weighting="log").item()
    assert ours == pytest.approx(torch.log1p(missed).mean().item(), abs=1e-6)
