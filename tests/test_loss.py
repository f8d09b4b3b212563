"""RamboLoss as a user calls it, and each known trap of ranking losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rambo_det import RamboLoss
from rambo_det.errors import InputError
from rambo_det.losses import ap_loss, blackbox_rank, class_ap_loss, interclass_ap_loss, recall_loss

from .strategies import batch, grad_of, run


def test_defaults_give_a_scalar_with_a_gradient():
    scores, gt = batch()
    scores.requires_grad_()
    loss = RamboLoss(4)(scores, gt)
    loss.backward()
    assert loss.shape == () and 0 < loss < 1
    assert (scores.grad != 0).any(dim=0).all()


def test_beta_mixes_class_and_interclass_terms():
    scores, gt = batch()
    per_class, flat = class_ap_loss(scores, gt), interclass_ap_loss(scores, gt)
    assert per_class != flat
    for beta in (0.0, 0.25, 1.0):
        got = RamboLoss(4, beta=beta)(scores, gt)
        torch.testing.assert_close(got, (1 - beta) * per_class + beta * flat)


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
    assert class_ap_loss(scores, gt, margin=0.49).item() == 0  # pushed past the bare order


def test_margin_is_what_a_positive_must_win_by():
    scores = torch.tensor([[2.0], [1.0]])
    gt = torch.tensor([0, 1])
    assert class_ap_loss(scores, gt, margin=0.99).item() == 0
    assert class_ap_loss(scores, gt, margin=1.0).item() == 0.5  # a tie after the margin


@pytest.mark.parametrize("step", [{"lambda_": 50.0}, {"lift": 3.0, "each": False}, {}])
@pytest.mark.parametrize("weight", [1e-3, 10.0, 65536.0])
def test_gradient_is_linear_in_the_loss_weight(step, weight):
    """Trap 1: a backward that perturbs with grad_output changes λ with every weight."""
    scores, gt = batch()
    loss = RamboLoss(4, **step)
    torch.testing.assert_close(
        grad_of(loss, scores, gt, weight=weight) / weight, grad_of(loss, scores, gt)
    )


@pytest.mark.parametrize("step", [{"lambda_": 50.0}, {"lift": 3.0, "each": False}, {}])
def test_irrelevant_negatives_change_nothing(step):
    """Trap 2: with ranks divided by N, λ depends on the length of the list."""
    scores, gt = batch()
    more = torch.cat([scores, torch.full((5000, 4), -100.0)])
    more_gt = torch.cat([gt, torch.full((5000,), 4)])
    loss = RamboLoss(4, **step)
    torch.testing.assert_close(grad_of(loss, more, more_gt)[:200], grad_of(loss, scores, gt))


def test_no_positive_starves_at_initialisation():
    """Trap 3: 512 proposals, 4 classes, 60 positives, logits of deviation 0.1, margin 1."""
    scores, gt = batch(512, 4, 60, std=0.1)
    default, fixed = RamboLoss(4), RamboLoss(4, lambda_=100.0)
    grad = grad_of(default, scores, gt)
    own = grad[torch.arange(60), gt[:60]]
    assert (own != 0).all() and own.sum() < 0
    assert default.stats.zero_gradient == 0 and default.stats.starved == 0
    assert (grad_of(fixed, scores, gt) == 0).all()
    assert fixed.stats.zero_gradient == 1 and fixed.stats.starved == 1


def test_starved_counts_only_positives_with_a_negative_above():
    scores = torch.tensor([[5.0], [0.0], [-100.0], [2.0]])
    loss = RamboLoss(1, lambda_=1e-9, beta=0.0)
    loss(scores, torch.tensor([0, 0, 1, 1]))
    assert loss.stats.zero_gradient == 1
    assert loss.stats.starved == 0.5


def test_gradient_of_a_list_sums_to_zero():
    """Trap 4, the other way round: what the shift invariance of the loss implies."""
    scores, gt = batch()
    grad = grad_of(RamboLoss(4, beta=0.0), scores, gt)
    torch.testing.assert_close(grad.sum(0), torch.zeros(4), atol=1e-6, rtol=0)


def test_ranks_are_exact_beyond_float32():
    """Trap 5: 2^24 + 3 scores above the one positive."""
    n = (1 << 24) + 3
    scores = torch.zeros(n + 1)
    scores[-1] = -1.0
    gt = torch.ones(n + 1, dtype=torch.int64)
    gt[-1] = 0
    _, result, _ = run(scores[:, None], gt, True, 0.0, {})
    assert result.segment_losses.tolist() == [1 - 1 / (n + 1), 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_ranked_as_their_float32_values(dtype):
    """Trap 5: arithmetic in half precision would tie scores that differ."""
    scores, gt = batch()
    half = scores.to(dtype)
    loss = RamboLoss(4)
    assert loss(half, gt) == loss(half.float(), gt)
    grad = grad_of(loss, half, gt)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, grad_of(loss, half.float(), gt).to(dtype))


def test_ties_never_favour_the_positive():
    scores, gt = torch.zeros(10, 1), torch.tensor([0] + [1] * 9)
    assert class_ap_loss(scores, gt, margin=0.0).item() == pytest.approx(0.9)
    assert ap_loss(scores[:, 0], gt == 0, margin=0.0).item() == pytest.approx(0.9)


@pytest.mark.parametrize("n", [0, 7])
def test_no_positive_gives_a_connected_zero(n):
    """Trap 6: a loss without a graph makes DistributedDataParallel wait for ever."""
    scores = torch.randn(n, 4, requires_grad=True)
    loss = RamboLoss(4, memory_length=2)(scores, torch.full((n,), 4))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and (scores.grad == 0).all()


@pytest.mark.parametrize("columns", [1, 4, 80])
def test_an_empty_batch_may_have_any_number_of_columns(columns):
    """What a detector without proposals gives: no row, and no matter how wide."""
    scores = torch.zeros(0, columns, requires_grad=True)
    loss = RamboLoss(4, memory_length=1)
    value = loss(scores, torch.zeros(0))
    value.backward()
    assert value.item() == 0 and scores.grad.shape == (0, columns)
    loss(*(x.requires_grad_(x.is_floating_point()) for x in batch()))
    with torch.no_grad():  # what is remembered is ranked all the same
        assert loss(scores, torch.zeros(0)) == loss(torch.zeros(0, 4), torch.zeros(0)) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, -1])
def test_scores_that_are_not_finite_make_the_loss_nan(bad, row):
    """Trap 6: NaN compares false with everything and would vanish from the ranking."""
    scores, gt = batch()
    scores[row, 1] = bad
    assert RamboLoss(4)(scores, gt).isnan()


def test_the_global_generator_is_not_used():
    """Trap 7: the published loss draws its margin from the global generator."""
    state = torch.random.get_rng_state()
    scores, gt = batch()
    loss = RamboLoss(4, memory_length=2)
    loss(scores, gt)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ignored_rows_are_in_no_list():
    scores, gt = batch()
    ignored = torch.full((50,), -1)
    more = torch.cat([torch.full((50, 4), 9.0), scores])
    grad = grad_of(RamboLoss(4), more, torch.cat([ignored, gt]))
    assert (grad[:50] == 0).all()
    torch.testing.assert_close(grad[50:], grad_of(RamboLoss(4), scores, gt))


def test_strided_scores():
    scores, gt = batch()
    wide = torch.randn(200, 9)
    wide[:, 1:9:2] = scores
    got = grad_of(lambda s, g: RamboLoss(4)(s[:, 1:9:2], g), wide, gt)
    torch.testing.assert_close(got[:, 1:9:2], grad_of(RamboLoss(4), scores, gt))
    got = grad_of(lambda s, g: RamboLoss(4)(s.t(), g), scores.t().contiguous(), gt)
    torch.testing.assert_close(got.t(), grad_of(RamboLoss(4), scores, gt))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lambda_": 0.0}, "lambda_"),
        ({"lambda_": float("nan")}, "lambda_"),
        ({"lambda_": float("inf")}, "lambda_"),
        ({"lift": -1.0}, "lift"),
        ({"lift": float("inf")}, "lift"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("inf")}, "margin"),
        ({"beta": 1.5}, "beta"),
        ({"memory_length": -1}, "memory_length"),
        ({"memory_size": 7}, "memory_size"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3.0}, "num_classes must be an integer"),
        ({"memory_length": 2.5}, "memory_length .* must be an integer"),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        RamboLoss(**{"num_classes": 4, **arguments})


def test_numbers_of_numpy_are_numbers():
    loss = RamboLoss(
        np.int64(4), memory_length=np.int32(2), memory_size=np.int64(16), beta=np.float32(0.25)
    )  # fmt: skip
    scores, gt = batch(20, 4, 5)
    assert loss(scores, gt) > 0


@pytest.mark.parametrize("label", [5, 2**40])
def test_a_label_above_background_is_no_class(label):
    """Cross entropy fails there too; it was taken for background."""
    scores, gt = batch(20, 4, 5)
    assert RamboLoss(4)(scores, gt.where(gt != 4, -1)) >= 0
    gt[3] = label
    with pytest.raises(InputError, match=f"gt_classes has {label}.*highest label is 4"):
        RamboLoss(4)(scores, gt)
    with pytest.raises(InputError, match="gt_classes must be integers, got torch.float32"):
        RamboLoss(4)(scores, gt.float())


def test_what_pytorch_computes_otherwise_is_refused():
    scores, gt = batch(20, 4, 5)
    for transform, given in ((torch.func.grad, scores), (torch.func.vmap, scores[None])):
        with pytest.raises(InputError, match="no torch.func transform"):
            transform(lambda s: class_ap_loss(s, gt))(given)


@pytest.mark.parametrize("memory_length", [0, 2])
def test_a_batch_enters_the_memory_once_or_not_at_all(memory_length):
    """Activation checkpointing computes anew, in the backward, what it is put around."""
    scores, gt = batch(20, 4, 5)
    loss = RamboLoss(4, memory_length=memory_length)
    found = torch.utils.checkpoint.checkpoint(
        lambda x: loss(x, gt).exp(), scores.requires_grad_(), use_reentrant=False
    )
    if memory_length:
        with pytest.raises(InputError, match="leave the loss out of torch.utils.checkpoint"):
            found.backward()
        assert loss.memory.written == 1
    else:
        found.backward()
        assert scores.grad.abs().sum() > 0


def test_wrong_shapes():
    with pytest.raises(InputError, match=r"\(N, 4\)"):
        RamboLoss(4)(torch.zeros(3, 5), torch.zeros(3))
    with pytest.raises(InputError, match="gt_classes"):
        RamboLoss(4)(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(InputError, match="targets"):
        ap_loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(InputError, match="weighting"):
        recall_loss(torch.zeros(3), torch.zeros(3), weighting="square")


def test_blackbox_rank_gives_the_ap_losses_gradient():
    """The generic building block, through the AP formula, and the counting path agree."""
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
    with pytest.raises(ValueError, match="lambda_"):
        blackbox_rank(leaf, 0.0)


AUTHORS = json.loads((Path(__file__).parent / "authors_cases.json").read_text())


@pytest.mark.parametrize("case", [c for c in AUTHORS if c["kind"] == "ap"])
def test_published_algorithm(case):
    """Numbers that the authors' own code gave. Its λ acts on ranks divided by the list's length N
    and on the gradient of the *mean* over the classes that have a positive: λ/(N·classes) of ours.
    An ε of 1e-5 in it shifts the loss by about 1e-6."""
    scores, targets = torch.tensor(case["scores"]), torch.tensor(case["targets"])
    n, c = scores.shape
    present = int((targets.sum(0) > 0).sum())
    total, grads = 0.0, []
    for j in range(c):
        leaf = scores[:, j].clone().requires_grad_()
        lambda_ = case["lambda_divided"] * n / present
        loss = ap_loss(leaf, targets[:, j], lambda_=lambda_, margin=0.0)
        (loss / present).backward()
        total += loss.item() / present
        grads.append(leaf.grad)
    assert total == pytest.approx(case["loss_per_class"], abs=1e-5)
    torch.testing.assert_close(
        torch.stack(grads, 1), torch.tensor(case["grad_per_class"]), atol=1e-7, rtol=1e-5
    )
    leaf = scores.flatten().requires_grad_()
    flat = ap_loss(leaf, targets.flatten(), lambda_=case["lambda_divided"] * n * c, margin=0.0)
    flat.backward()
    assert flat.item() == pytest.approx(case["loss_flat"], abs=1e-5)
    torch.testing.assert_close(leaf.grad, torch.tensor(case["grad_flat"]), atol=1e-7, rtol=1e-5)


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
    # What is before and behind it, once for one number of rows and once for any.
    assert 2 <= len(graphs) <= 4


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


def test_a_nan_without_a_positive_has_a_gradient_of_nan():
    scores = torch.tensor([[0.0, torch.nan]], requires_grad=True)
    loss = RamboLoss(2)(scores, torch.tensor([2]))
    loss.backward()
    assert loss.isnan() and scores.grad.isnan().all()
