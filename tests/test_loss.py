"""RamboLoss as a user calls it, and known traps of ranking losses beyond the formulas.

test_against_oracle.py tests the formulas, batches without positives, ignored rows, ties and
strides; test_amp.py half precision and loss weights; test_moving_in.py the authors' numbers.
"""

import doctest
import importlib
import inspect
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from rambo_det import RamboLoss, losses
from rambo_det.errors import InputError
from rambo_det.losses import ap_loss, blackbox_rank, class_ap_loss, interclass_ap_loss, recall_loss

from .strategies import batch, grad_of, run


def test_beta_mixes_class_and_interclass_terms():
    scores, gt = batch()
    per_class, flat = class_ap_loss(scores, gt), interclass_ap_loss(scores, gt)
    assert per_class != flat
    for beta in (0.0, 0.25, 1.0):
        got = RamboLoss(4, beta=beta)(scores, gt)
        torch.testing.assert_close(got, (1 - beta) * per_class + beta * flat)
        changed = RamboLoss(4, beta=1.0 - beta)
        changed.spec = replace(changed.spec, beta=beta)
        assert changed(scores, gt) == got


def test_descent_sorts_the_scores():
    scores, gt = batch(std=0.1)
    scores.requires_grad_()
    loss = RamboLoss(4, beta=0.0)
    optimizer = torch.optim.SGD([scores], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(scores, gt)
        value.backward()
        optimizer.step()
    assert value.item() == 0
    assert class_ap_loss(scores, gt, margin=0.49).item() == 0  # beyond the bare order


@pytest.mark.parametrize(
    "scores, margin, loss",
    [([2.0, 1.0], 0.99, 0), ([2.0, 1.0], 1.0, 1 / 2), ([0.0] * 10, 0.0, 9 / 10)],
)
def test_a_positive_must_win_by_the_margin_and_a_tie_is_lost(scores, margin, loss):
    scores = torch.tensor(scores)
    gt = (torch.arange(len(scores)) > 0).long()  # the first is positive
    assert class_ap_loss(scores[:, None], gt, margin=margin).item() == pytest.approx(loss)
    assert ap_loss(scores, gt == 0, margin=margin).item() == pytest.approx(loss)


def test_no_positive_starves_at_initialisation():
    """The batch has 512 proposals, 4 classes, 60 positives, and logits of deviation 0.1."""
    scores, gt = batch(512, 4, 60, std=0.1)
    default, fixed = RamboLoss(4), RamboLoss(4, lambda_=100.0)
    grad = grad_of(default, scores, gt)
    own = grad[torch.arange(60), gt[:60]]
    assert (own != 0).all() and own.sum() < 0
    assert default.stats.zero_gradient == 0 and default.stats.starved == 0
    assert (grad_of(fixed, scores, gt) == 0).all()
    assert fixed.stats.zero_gradient == 1 and fixed.stats.starved == 1


def test_ranks_are_exact_beyond_float32():
    """2^24 + 3 scores are above the only positive."""
    n = (1 << 24) + 3
    scores = torch.zeros(n + 1)
    scores[-1] = -1.0
    gt = torch.ones(n + 1, dtype=torch.int64)
    gt[-1] = 0
    _, result, _ = run(scores[:, None], gt, True, 0.0, {})
    assert result.segment_losses.tolist() == [1 - 1 / (n + 1), 0]


@pytest.mark.parametrize("columns", [1, 4, 80])
def test_an_empty_batch_may_have_any_number_of_columns(columns):
    """A detector without proposals gives no rows; the number of columns does not matter."""
    scores = torch.zeros(0, columns, requires_grad=True)
    loss = RamboLoss(4, memory_length=1)
    value = loss(scores, torch.zeros(0))
    value.backward()
    assert value.item() == 0 and scores.grad.shape == (0, columns)
    loss(*(x.requires_grad_(x.is_floating_point()) for x in batch()))
    assert loss(scores, torch.zeros(0)) == 0  # also with remembered scores


def test_the_global_generator_is_not_used():
    """The published loss draws its margin from the global generator."""
    state = torch.random.get_rng_state()
    RamboLoss(4, memory_length=2)(*batch())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lambda_": 0.0}, "lambda_"),
        ({"lambda_": float("nan")}, "lambda_"),
        ({"lambda_": float("inf")}, "lambda_"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("inf")}, "margin"),
        ({"beta": 1.5}, "beta"),
        ({"memory_length": -1}, "memory_length"),
        ({"memory_size": 7}, "memory_size"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3.0}, "num_classes must be an integer"),
        ({"memory_length": 2.5}, "memory_length must be an integer"),
        ({"margin": None}, "margin"),
        ({"lambda_": "each"}, "lambda_"),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        RamboLoss(**{"num_classes": 4, **arguments})


def test_numbers_of_numpy_are_numbers():
    numbers = {"memory_length": np.int32(2), "memory_size": np.int64(16), "beta": np.float32(0.25)}
    assert RamboLoss(np.int64(4), **numbers)(*batch(20, 4, 5)) > 0


def loss(scores, gt):
    return RamboLoss(4)(scores, gt)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda scores, gt: loss(scores[:, :3], gt), r"\(N, 4\)"),
        (lambda scores, gt: loss(scores, gt[:2]), r"gt_classes \(N,\), got \(20, 4\) and \(2,\)"),
        (lambda scores, gt: loss(scores, gt.float()), "must be integers, got torch.float32"),
        # Cross entropy fails for such labels too.
        (lambda scores, gt: loss(scores, gt + 1), "contains 5.*largest valid label is 4"),
        (lambda scores, gt: loss(scores, gt.where(gt < 4, 2**40)), f"gt_classes contains {2**40}"),
        (lambda scores, gt: RamboLoss(4, memory_length=2).to("meta")(scores, gt),
         "scores are on cpu, but the score memory of RamboLoss is on meta"),
        (lambda scores, gt: torch.func.grad(loss)(scores, gt), "do not support torch.func"),
        (lambda scores, gt: torch.func.vmap(loss, (0, None))(scores[None], gt), "torch.func"),
        (lambda scores, gt: torch.func.vmap(loss, (None, 0))(scores, gt[None]), "torch.func"),
        (lambda scores, gt: loss(scores, gt.numpy()), "must be a tensor, got ndarray"),
        (lambda scores, gt: ap_loss(scores[:, 0], gt[:2]), "targets"),
        (lambda scores, gt: recall_loss(scores[:, 0], gt == 0, weighting="square"), "weighting"),
        (lambda scores, gt: blackbox_rank(scores, 0.0), "lambda_ must be > 0"),
        (lambda scores, gt: blackbox_rank(scores, float("inf")), "lambda_ must be > 0 and finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*batch(20, 4, 5))


@pytest.mark.parametrize("memory_length", [0, 2])
def test_a_batch_enters_the_memory_once_or_not_at_all(memory_length):
    """Activation checkpointing computes the wrapped code again in the backward pass."""
    scores, gt = batch(20, 4, 5)
    loss = RamboLoss(4, memory_length=memory_length)
    found = torch.utils.checkpoint.checkpoint(
        lambda x: loss(x, gt).exp(), scores.requires_grad_(), use_reentrant=False
    )
    if memory_length:
        with pytest.raises(InputError, match="keep the loss outside of checkpointed code"):
            found.backward()
        assert loss.memory.written == 1
    else:
        found.backward()
        assert scores.grad.abs().sum() > 0


def test_scores_that_changed_since_have_no_gradient():
    """The forward pass computes the gradient, and each backward pass adds it. Labels may change
    between the two."""
    scores, gt = batch()
    scores.requires_grad_()
    RamboLoss(4)(scores, gt).backward()
    want, scores.grad = scores.grad, None
    loss = RamboLoss(4)(scores, gt)
    gt.fill_(-1)
    loss.backward(retain_graph=True)
    assert torch.equal(scores.grad, want)
    once = scores.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(scores.grad, 2 * once) and once.any()
    with torch.no_grad():
        scores += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_loss_is_run_as_it_is_whatever_the_number_of_scores():
    plain, compiled = (RamboLoss(4, memory_length=2) for _ in range(2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    call = torch.compile(lambda scores, gt: compiled(2 * scores, gt) / 2, backend=backend)
    for number in (40, 55, 8):
        scores, gt = torch.randn(number, 4), torch.arange(number) % 5
        a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        want, got = plain(2 * a, gt) / 2, call(b, gt)
        want.backward()
        got.backward()
        assert torch.equal(got, want) and torch.equal(b.grad, a.grad)
    # The code before and after the loss is compiled for one number of rows, then for any number.
    assert 2 <= len(graphs) <= 4


def test_blackbox_rank_gives_the_ap_losses_gradient():
    """The AP formula on top of blackbox_rank and the counting code agree."""
    scores, gt = batch(100, 1, 15)
    positive, lambda_ = gt == 0, 40.0
    leaf = scores[:, 0].double().requires_grad_()
    ranks = blackbox_rank(leaf, lambda_)
    rank_pos = torch.empty(15, dtype=torch.float64)
    rank_pos[ranks[positive].argsort()] = torch.arange(1.0, 16, dtype=torch.float64)
    loss = 1 - (rank_pos / ranks[positive]).mean()
    loss.backward()
    fast = scores[:, 0].clone().requires_grad_()
    value = ap_loss(fast, positive, lambda_=lambda_, margin=0.0)
    value.backward()
    assert value.item() == pytest.approx(loss.item())
    torch.testing.assert_close(fast.grad.double(), leaf.grad)


def test_ranks_are_along_the_last_dimension():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    leaf = scores.clone().requires_grad_()
    ranks = blackbox_rank(leaf, 5.0)
    assert ranks.tolist() == [[1, 3, 2], [3, 2, 1]]
    (ranks * torch.tensor([1.0, 0.0, 0.0])).sum().backward()
    for row, grad in zip(scores, leaf.grad, strict=True):
        alone = row.clone().requires_grad_()
        blackbox_rank(alone, 5.0)[0].backward()
        assert torch.equal(alone.grad, grad)
    assert leaf.grad[1].any()


MODULES = [module.name for module in pkgutil.walk_packages(losses.__path__, "rambo_det.losses.")]


@pytest.mark.parametrize("name", [x for x in MODULES if not x.endswith("triton_kernel")])
def test_the_examples_of_the_docstrings_are_right(name):
    scope = {**vars(losses), "torch": torch}
    assert doctest.testmod(importlib.import_module(name), extraglobs=scope).failed == 0


def test_every_public_function_has_an_example_or_points_to_one():
    for name in losses.__all__:
        if inspect.isfunction(getattr(losses, name)) or name == "RamboLoss":
            assert ">>>" in getattr(losses, name).__doc__ or name == "interclass_ap_loss"
