"""Every fast path equals the O(N²) float64 oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rambo_det.losses import RamboLoss, recall_loss

from . import oracle
from .strategies import assert_same_gradient, batches, examples, margins, run, steps


def check_class_lists(batch, margin, step, device="cpu"):
    """Checks losses and gradient of the classes' lists, ranked on a device, against the oracle."""
    scores, gt = batch
    loss, result, grad = run(scores.to(device), gt.to(device), True, margin, step)
    want, present, want_grad = oracle.class_lists(
        scores.double().numpy(), gt.numpy(), margin=margin, **step
    )
    np.testing.assert_array_equal(result.present.cpu().numpy(), [*present, False])
    share = 1 / max(present.sum(), 1)
    assert_same_gradient(grad, want_grad * share, step)
    losses = result.segment_losses.cpu().numpy()
    np.testing.assert_allclose(losses, [*want, 0], rtol=1e-12, atol=1e-15)
    assert loss.item() == pytest.approx(want.sum() * share, rel=1e-6, abs=1e-7)


@examples(400)
@given(batches(), margins, steps)
def test_class_lists_equal_the_oracle(batch, margin, step):
    check_class_lists(batch, margin, step)


@examples(200)
@given(batches(30), margins, steps)
def test_interclass_list_equals_the_oracle(batch, margin, step):
    scores, gt = batch
    _, result, grad = run(scores, gt, False, margin, step)
    want, want_grad = oracle.flat_list(scores.double().numpy(), gt.numpy(), margin=margin, **step)
    assert_same_gradient(grad, want_grad, step)
    np.testing.assert_allclose(result.segment_losses.numpy()[-1], want, rtol=1e-12, atol=1e-15)
    assert not result.segment_losses[:-1].any()


@pytest.mark.parametrize("regime", ["init", "mid"])
def test_long_lists_equal_the_oracle(regime):
    rng = np.random.default_rng(0)
    scores = rng.normal(*((-4.6, 1) if regime == "init" else (-6, 2)), (2000, 3))
    gt = np.full(2000, 3)
    gt[:40] = rng.integers(0, 3, 40)
    if regime == "mid":
        scores[np.arange(40), gt[:40]] = rng.normal(-1, 1.5, 40)
    batch = torch.tensor(scores, dtype=torch.float32), torch.tensor(gt)
    check_class_lists(batch, 1.0, {})


@examples(100)
@given(batches(), margins, steps, st.sampled_from(["log", "loglog"]))
def test_recall_loss_equals_the_oracle(batch, margin, step, weighting):
    scores, gt = batch[0][:, 0], batch[1] == 0
    leaf = scores.clone().requires_grad_()
    loss = recall_loss(leaf, gt, weighting=weighting, margin=margin, **step)
    loss.backward()
    objectives = {"log": oracle.recall_objective, "loglog": oracle.recall_loglog_objective}
    want, grad = oracle.list_loss(
        scores.double().numpy(), gt.numpy(), margin=margin, objective=objectives[weighting], **step
    )
    assert loss.item() == pytest.approx(want, rel=1e-6, abs=1e-7)
    # The two log() may differ in the last digit, and so may the end of the step.
    np.testing.assert_allclose(leaf.grad.numpy(), grad, rtol=1e-5, atol=1e-30)


def check_loss(loss, batch, remembered=(), transposed=False, **rule):
    """Checks RamboLoss on a batch against (1-β)·L_APC + β·L_AP; L_APC counts remembered scores."""
    window = [batch, *remembered]
    scores = torch.cat([scores for scores, _ in window]).double().numpy()
    gt = torch.cat([gt for _, gt in window]).numpy()
    number = len(batch[0])
    losses, present, grads = oracle.class_lists(scores, gt, number, **rule)
    flat, flat_grad = oracle.flat_list(scores[:number], gt[:number], **rule)
    share = (1 - loss.spec.beta) / max(present.sum(), 1)
    leaf = batch[0].t().contiguous().t() if transposed else batch[0].clone()
    value = loss(leaf.requires_grad_(), batch[1])
    value.backward()
    want = losses.sum() * share + flat * loss.spec.beta
    assert value.item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    want = grads[:number] * share + flat_grad * loss.spec.beta
    most = abs(want).max(initial=0)
    np.testing.assert_allclose(leaf.grad.numpy(), want, rtol=1e-5, atol=1e-6 * most + 1e-13)
    # The gradient sums to 0. Otherwise all scores would drift together.
    assert abs(leaf.grad.double().sum()) <= 1e-6 * leaf.grad.double().abs().sum()


@examples(150)
@given(
    st.lists(batches(25), min_size=1, max_size=6), st.integers(0, 4), margins, steps,
    st.sampled_from([0.0, 0.3, 1.0]), st.booleans(),
)  # fmt: skip
def test_the_loss_and_its_memory_equal_the_oracle(batches, length, margin, step, beta, transposed):
    """For L_APC the loss also ranks the batch among the scores of the last τ batches."""
    c = batches[0][0].shape[1]
    batches = [(s, g) for s, g in batches if s.shape[1] == c]
    loss = RamboLoss(c, margin=margin, beta=beta, memory_length=length, **step)
    for place, current in enumerate(batches):
        remembered = batches[max(0, place - length) : place]
        check_loss(loss, current, remembered, transposed, margin=margin, **step)
