"""Order by how well boxes fit their objects: against the oracle, and what it promises."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.errors import InputError
from rambo_det.losses import RamboLoss, ap_loss, class_ap_loss, interclass_ap_loss, worse_placed

from . import oracle
from .strategies import (
    assert_same_gradient,
    batch,
    batches,
    gaps,
    margins,
    overlaps,
    run,
    steps,
)


def as_numpy(*tensors):
    return [x.double().numpy() if x.is_floating_point() else x.numpy() for x in tensors]


def assert_same(got, want, step):
    if "each" in step:  # what pushes a positive up and what pushes it down may sum to 0 or nearly
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-13)
    else:
        assert_same_gradient(got, want, step)


@settings(max_examples=400, deadline=None)
@given(st.data(), batches(), margins, steps, gaps)
def test_class_lists_equal_the_oracle(data, batch, margin, step, gap):
    ious = data.draw(overlaps(len(batch[1])))
    loss, result, grad = run(*batch, True, margin, step, ious, gap)
    scores, gt, ious = as_numpy(*batch, ious)
    want, present, want_grad = oracle.class_lists(scores, gt, ious, margin=margin, gap=gap, **step)
    share = 1 / max(present.sum(), 1)
    assert_same(grad, want_grad * share, step)
    np.testing.assert_allclose(result.segment_losses.numpy(), [*want, 0], rtol=1e-12, atol=1e-15)
    assert loss.item() == pytest.approx(want.sum() * share, rel=1e-6, abs=1e-7)


@settings(max_examples=200, deadline=None)
@given(st.data(), batches(30), margins, steps, gaps)
def test_interclass_list_equals_the_oracle(data, batch, margin, step, gap):
    ious = data.draw(overlaps(len(batch[1])))
    _, result, grad = run(*batch, False, margin, step, ious, gap)
    scores, gt, ious = as_numpy(*batch, ious)
    want, want_grad = oracle.flat_list(scores, gt, ious, margin=margin, gap=gap, **step)
    assert_same(grad, want_grad, step)
    np.testing.assert_allclose(result.segment_losses.numpy()[-1], want, rtol=1e-12, atol=1e-15)


@settings(max_examples=80, deadline=None)
@given(
    st.data(), batches(80), st.integers(1, 4), st.integers(0, 3), margins, steps, gaps,
    st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_both_terms_with_a_memory_equal_the_oracle(
    data, batch, number, length, margin, step, gap, beta
):
    """Overlaps are remembered with the scores. The rows come in several batches."""
    c = batch[0].shape[1]
    loss = RamboLoss(c, margin=margin, beta=beta, memory_length=length, iou_gap=gap, **step)
    columns = (*batch, data.draw(overlaps(len(batch[1]))))
    ring = {}
    parts = zip(*(column.chunk(number) for column in columns), strict=True)
    for written, (scores, gt, ious) in enumerate(parts):
        leaf = scores.clone().requires_grad_()
        value = loss(leaf, gt, ious)
        value.backward()
        # Positives that tie rank in this order: the current batch, then as they are stored.
        window = [(scores, gt, ious), *ring.values()]
        joined = as_numpy(*(torch.cat(parts) for parts in zip(*window, strict=True)))
        losses, present, grads = oracle.class_lists(*joined, margin=margin, gap=gap, **step)
        flat, flat_grad = oracle.flat_list(
            *as_numpy(scores, gt, ious), margin=margin, gap=gap, **step
        )
        share = (1 - beta) / max(present.sum(), 1)
        want = grads[: len(gt)] * share + flat_grad * beta
        assert value.item() == pytest.approx(losses.sum() * share + flat * beta, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(
            leaf.grad.numpy(), want, rtol=1e-5, atol=1e-6 * abs(want).max(initial=0)
        )
        if length:
            ring[written % length] = scores, gt, ious  # keeps the place of a slot


@pytest.mark.parametrize("step", [{}, {"lambda_": 1e4}, {"each": True}], ids=str)
@pytest.mark.parametrize("pairs", [None, 1, 1000, 1 << 24])
def test_long_lists_equal_the_oracle_in_c_and_in_blocks_of_any_size(step, pairs, monkeypatch):
    """The blocks are what a GPU compares, and a CPU without a compiler."""
    g = torch.Generator().manual_seed(0)
    scores, ious = torch.randn(300, 3, generator=g), torch.rand(300, generator=g)
    gt = torch.arange(300)
    gt = torch.where(gt < 200, 1, gt % 4)
    want = oracle.class_lists(*as_numpy(scores, gt, ious), margin=0.5, gap=0.1, **step)
    if pairs:
        monkeypatch.setattr(worse_placed, "_PAIRS", pairs)
        monkeypatch.setattr(worse_placed, "cpu", SimpleNamespace(library=lambda: None))
    _, result, grad = run(scores, gt, True, 0.5, step, ious, 0.1)
    np.testing.assert_allclose(result.segment_losses.numpy()[:-1], want[0], rtol=1e-12)
    assert_same(grad, want[2] * (1 / 3), step)


@settings(max_examples=150, deadline=None)
@given(batches(), margins, steps, st.sampled_from([0.0, 1.0]), st.sampled_from([0, 2]))
def test_equal_overlaps_and_a_gap_of_1_are_the_loss_without_overlaps_bit_for_bit(
    batch, margin, step, iou, length
):
    scores, gt = batch
    found = []
    for gap, ious in ((1.0, None), (1.0, torch.rand(len(gt))), (0.0, torch.full((len(gt),), iou))):
        loss = RamboLoss(scores.shape[1], margin=margin, memory_length=length, iou_gap=gap, **step)
        for _ in range(2):
            leaf = scores.clone().requires_grad_()
            value = loss(leaf, gt, ious)
            value.backward()
        found.append([value.detach(), leaf.grad, loss.stats.class_ap, loss.stats.starved])
    for others in found[1:]:
        for got, want in zip(others, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def one_list(batch, ious, margin, gap):
    """The loss of the scores of column 0, those of class 0 positive."""
    return run(batch[0][:, :1], (batch[1] != 0).long(), True, margin, {}, ious, gap)[0].item()


@settings(max_examples=100, deadline=None)
@given(st.data(), batches(), margins, gaps)
def test_to_swap_neighbours_into_the_order_of_their_overlaps_never_raises_the_loss(
    data, batch, margin, gap
):
    """Neighbours in rank: of two with negatives between them the better placed one has errors of
    its own at the higher rank, which weigh more there."""
    scores, gt = batch
    ious = data.draw(overlaps(len(gt)))
    order = scores[:, 0].argsort(descending=True, stable=True).tolist()
    rows = [row for row in order if gt[row] == 0]
    before = one_list(batch, ious, margin, gap)
    for k, i in itertools.pairwise(rows):
        low, high = (scores[row, 0].item() - margin for row in (i, k))
        between = (scores[:, 0] >= low) & (scores[:, 0] < high) & (gt != 0)
        if ious[k] < ious[i].item() - gap and not between.any():
            swapped = ious.clone()
            swapped[i], swapped[k] = ious[k], ious[i]
            assert one_list(batch, swapped, margin, gap) <= before + 1e-6


@settings(max_examples=100, deadline=None)
@given(st.data(), batches(), margins, gaps)
def test_the_order_of_the_overlaps_is_the_best_and_costs_what_order_by_class_costs(
    data, batch, margin, gap
):
    scores, gt = batch
    ious = data.draw(overlaps(len(gt))).nan_to_num(0.5)
    order = scores[:, 0].argsort(descending=True, stable=True)
    rows = order[gt[order] == 0]
    best = ious.clone()
    best[rows] = ious[rows].sort(descending=True).values
    without = one_list(batch, None, margin, 1.0)
    assert one_list(batch, best, margin, gap) == without <= one_list(batch, ious, margin, gap)


@settings(max_examples=150, deadline=None)
@given(st.data(), batches(), margins, steps, gaps, st.booleans())
def test_the_gradient_of_a_list_sums_to_zero(data, batch, margin, step, gap, per_class):
    """What is pushed up is pushed up as much as its errors are pushed down, worse placed or not."""
    ious = data.draw(overlaps(len(batch[1])))
    grad = run(*batch, per_class, margin, step, ious, gap)[2]
    sums = grad.sum(axis=0) if per_class else grad.sum()
    assert abs(sums).max(initial=0) <= 1e-9 * abs(grad).sum() + 1e-300


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-3, 3, width=32), st.floats(0, 3, width=32), st.integers(0, 20),
    st.sampled_from([(0.3, 0.8), (0.0, 1.0)]), margins, steps,
)  # fmt: skip
def test_the_worse_placed_of_two_is_pushed_down_relative_to_the_better(
    low, height, negatives, overlap, margin, step
):
    """Whatever lies around them; never the other way."""
    scores = torch.tensor([[low], [low + height], *[[x / 3 - 3.0] for x in range(negatives)]])
    gt = torch.tensor([0, 0] + [1] * negatives)
    grads = []
    for of_low, of_high in (overlap[::-1], overlap):
        ious = torch.tensor([of_low, of_high] + [0.0] * negatives)
        grads.append(run(scores, gt, True, margin, step, ious, 0.25)[2][:, 0])
    (placed, plain) = grads
    if negatives == 0:
        assert placed[1] == -placed[0] >= 0
        reach = step.get("lift", 2.0) + margin
        if "lambda_" not in step and height > 0:
            assert (placed[1] > 0) == (np.float32(low + height) - margin < low - margin + reach)
    if "each" in step:  # the loss of one alone grows, and its errors are pushed harder
        assert placed[0] - placed[1] <= plain[0] - plain[1] + 1e-12


def test_what_is_ranked_by_hand():
    """Two positives and a negative; the better placed one lies below the worse placed one."""
    scores = torch.tensor([[3.0], [2.0], [2.5]], requires_grad=True)
    gt, ious = torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.9, 0.0])
    loss = RamboLoss(1, margin=0.0, beta=0.0, lift=2.0, each=True, iou_gap=0.3)
    value = loss(scores, gt, ious)
    value.backward()
    # The second has rank 3, with two errors above: (0 + 2/3) / 2. It passes both.
    assert value.item() == pytest.approx(1 / 3)
    assert scores.grad.flatten().tolist() == pytest.approx([1 / 6, -1 / 3, 1 / 6])
    assert loss.stats.class_ap.tolist() == pytest.approx([2 / 3])
    assert RamboLoss(1, margin=0.0, iou_gap=0.4001)(scores, gt, ious).item() == pytest.approx(1 / 6)


def test_a_worse_placed_positive_out_of_reach_starves_as_a_negative_does():
    scores, gt = torch.tensor([[9.0], [1.0], [0.0]]), torch.tensor([0, 0, 1])
    loss = RamboLoss(1, margin=0.0, lift=2.0, each=True, iou_gap=0.1)
    loss(scores, gt, torch.tensor([0.5, 0.9, 0.0]))
    assert loss.stats.zero_gradient == 1 and loss.stats.starved == 0.5


def test_every_function_takes_overlaps():
    scores, gt = batch(60, 3, 12)
    ious = torch.rand(60, generator=torch.Generator().manual_seed(0))
    want = oracle.class_lists(*as_numpy(scores, gt, ious), margin=0.5, gap=0.1)[0]
    got = class_ap_loss(scores, gt, ious=ious, iou_gap=0.1).item()
    assert got == pytest.approx(want.sum() / 3) and got > class_ap_loss(scores, gt).item()
    want = oracle.flat_list(*as_numpy(scores, gt, ious), margin=0.5, gap=0.1)[0]
    assert interclass_ap_loss(scores, gt, ious=ious, iou_gap=0.1).item() == pytest.approx(want)
    want = oracle.list_loss(
        *as_numpy(scores[:, 0], gt == 0), margin=0.5, ious=ious.double().numpy(), gap=0.1
    )[0]
    got = ap_loss(scores[:, 0], gt == 0, ious=ious, iou_gap=0.1)
    assert got.item() == pytest.approx(want)


@pytest.mark.parametrize("ious", [None, torch.ones(19), torch.ones(20, 1)])
def test_overlaps_that_are_missing_or_of_another_shape_are_one_line(ious):
    scores, gt = batch(20, 4, 5)
    for call in (RamboLoss(4, iou_gap=0.0), lambda *x: class_ap_loss(*x[:2], ious=x[2], iou_gap=0)):
        with pytest.raises(InputError, match=r"asks for ious of shape \(20,\), got "):
            call(scores, gt, ious)


@pytest.mark.parametrize("gap", [-0.1, 1.5, float("nan")])
def test_a_gap_out_of_its_range_is_one_line(gap):
    scores, gt = batch(20, 4, 5)
    with pytest.raises(InputError, match=r"iou_gap must be in \[0, 1\], got"):
        class_ap_loss(scores, gt, ious=torch.ones(20), iou_gap=gap)
