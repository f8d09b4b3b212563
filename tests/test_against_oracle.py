"""Every fast path against the O(N²) float64 version, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.losses import RamboLoss, recall_loss

from . import oracle
from .strategies import assert_same_gradient, batch, batches, margins, run, steps


@settings(max_examples=400, deadline=None)
@given(batches(), margins, steps)
def test_class_lists_equal_the_oracle(batch, margin, step):
    scores, gt = batch
    loss, result, grad = run(scores, gt, True, margin, step)
    want, present, want_grad = oracle.class_lists(
        scores.double().numpy(), gt.numpy(), margin=margin, **step
    )
    np.testing.assert_array_equal(result.present.numpy(), [*present, False])
    share = 1 / max(present.sum(), 1)
    assert_same_gradient(grad, want_grad * share, step)
    np.testing.assert_allclose(result.segment_losses.numpy(), [*want, 0], rtol=1e-12, atol=1e-15)
    assert loss.item() == pytest.approx(want.sum() * share, rel=1e-6, abs=1e-7)


@settings(max_examples=200, deadline=None)
@given(batches(30), margins, steps)
def test_interclass_list_equals_the_oracle(batch, margin, step):
    scores, gt = batch
    _, result, grad = run(scores, gt, False, margin, step)
    want, want_grad = oracle.flat_list(scores.double().numpy(), gt.numpy(), margin=margin, **step)
    assert_same_gradient(grad, want_grad, step)
    np.testing.assert_allclose(result.segment_losses.numpy()[-1], want, rtol=1e-12, atol=1e-15)
    assert not result.segment_losses[:-1].any()


@settings(max_examples=200, deadline=None)
@given(batches(40), margins, steps, st.sampled_from([0.0, 0.3, 1.0]))
def test_the_loss_of_both_terms_equals_the_oracle(batch, margin, step, beta):
    """(1-β)·L_APC + β·L_AP, ranked in one go, transposed scores too."""
    scores, gt = batch
    losses, present, grads = oracle.class_lists(
        scores.double().numpy(), gt.numpy(), margin=margin, **step
    )
    flat, flat_grad = oracle.flat_list(scores.double().numpy(), gt.numpy(), margin=margin, **step)
    share = (1 - beta) / max(present.sum(), 1)
    for laid in (scores.clone(), scores.t().contiguous().t()):
        leaf = laid.requires_grad_()
        loss = RamboLoss(scores.shape[1], margin=margin, beta=beta, **step)(leaf, gt)
        loss.backward()
        assert loss.item() == pytest.approx(losses.sum() * share + flat * beta, rel=1e-6, abs=1e-7)
        want = grads * share + flat_grad * beta
        np.testing.assert_allclose(
            leaf.grad.numpy(), want, rtol=1e-5, atol=1e-6 * abs(want).max(initial=0)
        )


@pytest.mark.parametrize("regime", ["init", "mid"])
def test_long_lists_equal_the_oracle(regime):
    rng = np.random.default_rng(0)
    scores = rng.normal(*((-4.6, 1) if regime == "init" else (-6, 2)), (2000, 3))
    gt = np.full(2000, 3)
    gt[:40] = rng.integers(0, 3, 40)
    if regime == "mid":
        scores[np.arange(40), gt[:40]] = rng.normal(-1, 1.5, 40)
    scores = torch.tensor(scores, dtype=torch.float32)
    _, _, grad = run(scores, torch.tensor(gt), True, 1.0, {"lift": 3.0})
    _, _, want = oracle.class_lists(scores.double().numpy(), gt, margin=1.0, lift=3.0)
    assert np.count_nonzero(want) > 100
    assert_same_gradient(grad, want / 3, {"lift": 3.0})


@settings(max_examples=100, deadline=None)
@given(batches(), margins, steps, st.sampled_from(["log", "loglog"]))
def test_recall_loss_equals_the_oracle(batch, margin, step, weighting):
    scores, gt = batch[0][:, 0], batch[1] == 0
    leaf = scores.clone().requires_grad_()
    loss = recall_loss(leaf, gt, weighting=weighting, margin=margin, **step)
    loss.backward()
    objective = getattr(
        oracle, {"log": "recall_objective", "loglog": "recall_loglog_objective"}[weighting]
    )
    want, grad, _ = oracle.list_loss(
        scores.double().numpy(), gt.numpy(), margin=margin, objective=objective, **step
    )
    assert loss.item() == pytest.approx(want, rel=1e-6, abs=1e-7)
    # log() may differ in the last digit between the two, and with it the step's end.
    np.testing.assert_allclose(leaf.grad.numpy(), grad, rtol=1e-5, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(st.lists(batches(25), min_size=1, max_size=6), st.integers(0, 4), margins, steps)
def test_memory_equals_the_oracle_on_concatenated_batches(batches, length, margin, step):
    """AP_C over the last τ batches and this one, with the gradient of this one only."""
    c = batches[0][0].shape[1]
    batches = [(s, g) for s, g in batches if s.shape[1] == c]
    loss = RamboLoss(c, margin=margin, beta=0.0, memory_length=length, **step)
    seen = []
    for scores, gt in batches:
        leaf = scores.clone().requires_grad_()
        value = loss(leaf, gt)
        value.backward()
        window = [*seen[max(0, len(seen) - length) :], (scores, gt)] if length else [(scores, gt)]
        # The current batch first: positives that tie rank in that order.
        window = window[-1:] + window[:-1]
        joined = torch.cat([s for s, _ in window]).double().numpy()
        losses, present, grad = oracle.class_lists(
            joined, torch.cat([g for _, g in window]).numpy(), margin=margin, **step
        )
        num = max(present.sum(), 1)
        assert value.item() == pytest.approx(losses.sum() / num, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(
            leaf.grad.numpy(),
            grad[: len(scores)] / num,
            rtol=1e-5,
            atol=1e-13 if "each" not in step or step["each"] else 0,
        )
        seen.append((scores, gt))


@pytest.mark.parametrize("c", [1, 3])
def test_both_terms_with_a_memory_equal_the_oracle(c):
    (old, old_gt), (scores, gt) = batch(60, c, 12, seed=1), batch(60, c, 12, seed=2)
    loss = RamboLoss(c, beta=0.3, memory_length=1)
    loss(old.clone().requires_grad_(), old_gt)
    joined, classes = torch.cat([scores, old]).double().numpy(), torch.cat([gt, old_gt]).numpy()
    losses, present, _ = oracle.class_lists(joined, classes, margin=0.5)
    flat, _ = oracle.flat_list(scores.double().numpy(), gt.numpy(), margin=0.5)
    want = 0.7 * losses.sum() / present.sum() + 0.3 * flat
    assert loss(scores, gt).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("columns", [127, 129, 300])
def test_more_columns_than_a_block(columns):
    g = torch.Generator().manual_seed(columns)
    scores = torch.randn(40, columns, generator=g)
    gt = torch.randint(-1, columns + 1, (40,), generator=g)
    gt[:5] = torch.tensor([0, 127 % columns, 128 % columns, columns - 1, columns - 1])
    loss = RamboLoss(columns, beta=0.3)
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, gt)
    value.backward()
    losses, present, grads = oracle.class_lists(scores.double().numpy(), gt.numpy(), margin=0.5)
    flat, flat_grad = oracle.flat_list(scores.double().numpy(), gt.numpy(), margin=0.5)
    assert value.item() == pytest.approx(0.7 * losses.sum() / present.sum() + 0.3 * flat)
    want = 0.7 * grads / present.sum() + 0.3 * flat_grad
    np.testing.assert_allclose(leaf.grad.numpy(), want, rtol=1e-5, atol=1e-8)
