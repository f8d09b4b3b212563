"""The slow, obviously right version: float64, every pair of scores compared, from the paper.

``rk(y)`` counts who ranks above whom, ``∂L/∂y = (rk(y + λ ∂L/∂rk) - rk(y)) / λ`` over *all*
scores, negatives included. Nothing of this is shared with the package.
"""

import numpy as np


def above(y, positive, led_before=None):
    """``[j, i]``: j ranks above i. A tie goes to the negative; among positives to the one that led
    before (by default the earlier one); among negatives to the earlier one."""
    n = len(y)
    lead = np.arange(n) if led_before is None else led_before
    higher = y[:, None] > y[None, :]
    tie = y[:, None] == y[None, :]
    neg_first = tie & ~positive[:, None] & positive[None, :]
    same = tie & (positive[:, None] == positive[None, :]) & (lead[:, None] < lead[None, :])
    return higher | neg_first | same


def ap_objective(r, hits, p):
    return np.sum((1 - hits / r) / p), hits / (p * r * r)


def recall_objective(r, hits, p):
    return np.sum(np.log1p(r - hits)) / p, 1 / ((1 + (r - hits)) * p)


def recall_loglog_objective(r, hits, p):
    inner = np.log1p(r - hits)
    return np.sum(np.log1p(inner)) / p, 1 / ((1 + inner) * (1 + (r - hits)) * p)


def worse_placed(positive, ious, gap):
    """``[k, i]``: positive k's box fits its object worse than positive i's by more than the gap."""
    ious = np.zeros(len(positive)) if ious is None else np.asarray(ious, dtype=np.float64)
    return positive[:, None] & positive[None, :] & (ious[:, None] < ious[None, :] - gap)


def pulled_by_loss(y, positive, errors, summand, reach):
    """The gradient where each positive in turn, alone, moves up by ``reach``: it gets its summand
    of the loss, in equal parts from the errors that it passes; nothing if it passes none."""
    grad = np.zeros(len(y))
    for k, of_loss in zip(np.flatnonzero(positive), summand, strict=True):
        passed = errors[:, k] & (y < y[k] + reach)
        if passed.any():
            grad[passed] += of_loss / passed.sum()
            grad[k] -= of_loss
    return grad


def list_loss(
    scores, positive, *, margin, lambda_=None, lift=2.0, each=False, objective=ap_objective,
    ious=None, gap=1.0,
):  # fmt: skip
    """(loss, gradient (N,), λ) of one list of scores, positives with overlaps ``ious`` (N,)."""
    y = np.asarray(scores, dtype=np.float64).copy()
    positive = np.asarray(positive, dtype=bool)
    num_pos = positive.sum()
    if num_pos == 0:
        return 0.0, np.zeros_like(y), None
    y[positive] -= margin
    worse = worse_placed(positive, ious, gap)
    before = above(y, positive)
    # What counts against i: the negatives above it and the worse placed positives above it.
    errors = before & positive[None, :] & (~positive[:, None] | worse)
    rk = 1 + before.sum(axis=0)
    r, hits = rk[positive].astype(float), (rk - errors.sum(axis=0))[positive].astype(float)
    loss, slope = objective(r, hits, num_pos)
    if each:
        summand = np.array([objective(*one, num_pos)[0] for one in zip(r, hits, strict=True)])
        return loss, pulled_by_loss(y, positive, errors, summand, margin + lift), None
    divisor = lambda_
    if lambda_ is None:
        lambda_ = divisor = (margin + lift) / np.sort(slope)[(num_pos - 1) // 2]
        if objective is ap_objective:  # of -log AP: slope / AP, hence λ * AP; the step is the same
            divisor = lambda_ * (1 - loss)
    moved = y.copy()
    moved[positive] += lambda_ * slope
    lead = np.arange(len(y))
    lead[positive] = rk[positive]  # who led among the positives
    after = above(moved, positive, lead)
    for k, i in zip(*np.nonzero(worse), strict=True):
        # Between the two k stands still, as a negative does: it is above i if it was and i, moved,
        # does not pass it.
        after[k, i] = before[k, i] and y[k] >= moved[i]
        after[i, k] = not after[k, i]
    return loss, (after.sum(axis=0) - before.sum(axis=0)) / divisor, lambda_


def class_lists(scores, gt_classes, ious=None, **kwargs):
    """(losses (C,), present (C,), gradients (N, C)): one list a class, ignored rows left out."""
    n, c = scores.shape
    losses, present, grad = np.zeros(c), np.zeros(c, dtype=bool), np.zeros((n, c))
    valid = gt_classes >= 0
    for j in range(c):
        positive = gt_classes[valid] == j
        present[j] = positive.any()
        of_rows = None if ious is None else ious[valid]
        losses[j], grad[valid, j], _ = list_loss(scores[valid, j], positive, ious=of_rows, **kwargs)
    return losses, present, grad


def flat_list(scores, gt_classes, ious=None, **kwargs):
    """(loss, gradient (N, C)): all classes' scores in one list."""
    valid = gt_classes >= 0
    positive = gt_classes[valid][:, None] == np.arange(scores.shape[1])[None, :]
    grad = np.zeros(scores.shape)
    of_scores = None if ious is None else ious[valid].repeat(scores.shape[1])
    loss, flat, _ = list_loss(scores[valid].ravel(), positive.ravel(), ious=of_scores, **kwargs)
    grad[valid] = flat.reshape(-1, scores.shape[1])
    return loss, grad
