"""The slow, obviously right version: float64, every pair of scores compared, from the paper.

``rk(y)`` counts who ranks above whom, ``∂L/∂y = (rk(y + λ ∂L/∂rk) - rk(y)) / λ`` over *all*
scores, negatives included. Remembered scores enter the ranks that give the loss and its slope
``∂L/∂rk``; the ``rk`` of the gradient are those of the batch alone. Nothing of this is shared with
the package.
"""

import numpy as np


def ranks(y, positive, led_before=None):
    """Rank of each score, 1 = highest. A tie goes to the negative; among positives to the one that
    led before (by default the earlier one); among negatives to the earlier one."""
    n = len(y)
    lead = np.arange(n) if led_before is None else led_before
    higher = y[:, None] > y[None, :]
    tie = y[:, None] == y[None, :]
    neg_first = tie & ~positive[:, None] & positive[None, :]
    same = tie & (positive[:, None] == positive[None, :]) & (lead[:, None] < lead[None, :])
    return 1 + (higher | neg_first | same).sum(axis=0)


def ap_objective(r, r_pos, p):
    return np.sum((1 - r_pos / r) / p), r_pos / (p * r * r)


def recall_objective(r, r_pos, p):
    return np.sum(np.log1p(r - r_pos)) / p, 1 / ((1 + (r - r_pos)) * p)


def recall_loglog_objective(r, r_pos, p):
    inner = np.log1p(r - r_pos)
    return np.sum(np.log1p(inner)) / p, 1 / ((1 + inner) * (1 + (r - r_pos)) * p)


def pulled_by_loss(y, positive, summand):
    """The gradient where each positive in turn, alone, moves above all negatives: it gets its
    summand of the loss, in equal parts from those that it passes; nothing if it passes none."""
    grad = np.zeros(len(y))
    for k, of_loss in zip(np.flatnonzero(positive), summand, strict=True):
        passed = ~positive & (y >= y[k])
        if passed.any():
            grad[passed] += of_loss / passed.sum()
            grad[k] -= of_loss
    return grad


def list_loss(scores, positive, *, margin, lambda_=None, objective=ap_objective, in_batch=None):
    """(loss, gradient (N,)) of one list of scores, of which some are remembered, not in_batch: the
    loss is that of the batch's positives, with their ranks among all."""
    y = np.asarray(scores, dtype=np.float64).copy()
    positive = np.asarray(positive, dtype=bool)
    in_batch = np.ones(len(y), dtype=bool) if in_batch is None else in_batch
    of_batch = in_batch[positive]
    num_pos, grad = of_batch.sum(), np.zeros_like(y)
    if num_pos == 0:
        return 0.0, grad
    y[positive] -= margin
    # A remembered positive that ties ranks higher.
    lead = np.arange(len(y)) + len(y) * in_batch
    r = ranks(y, positive, lead)[positive][of_batch].astype(float)
    r_pos = ranks(y[positive], np.ones(len(of_batch), dtype=bool), lead[positive])[of_batch]
    loss, slope = objective(r, r_pos.astype(float), num_pos)
    summand = np.array([objective(*one, num_pos)[0] for one in zip(r, r_pos, strict=True)])
    # The gradient is found in the batch alone.
    y, positive = y[in_batch], positive[in_batch]
    if lambda_ is None:
        grad[in_batch] = pulled_by_loss(y, positive, summand)
        return loss, grad
    rk = ranks(y, positive)
    moved = y.copy()
    moved[positive] += lambda_ * slope
    lead = np.arange(len(y))
    lead[positive] = rk[positive]  # r⁺ order: who led among the positives
    grad[in_batch] = (ranks(moved, positive, lead) - rk) / lambda_
    return loss, grad


def class_lists(scores, gt_classes, number=None, **kwargs):
    """(losses (C,), present (C,), gradients (N, C)): one list a class, ignored rows left out.

    The first ``number`` rows are those of the batch, the others are remembered; None: no others."""
    n, c = scores.shape
    in_batch = np.arange(n) < (n if number is None else number)
    losses, present, grad = np.zeros(c), np.zeros(c, dtype=bool), np.zeros((n, c))
    valid = gt_classes >= 0
    for j in range(c):
        positive = gt_classes[valid] == j
        present[j] = (positive & in_batch[valid]).any()
        losses[j], grad[valid, j] = list_loss(
            scores[valid, j], positive, in_batch=in_batch[valid], **kwargs
        )
    return losses, present, grad


def flat_list(scores, gt_classes, **kwargs):
    """(loss, gradient (N, C)): all classes' scores in one list."""
    valid = gt_classes >= 0
    positive = gt_classes[valid][:, None] == np.arange(scores.shape[1])[None, :]
    grad = np.zeros(scores.shape)
    loss, flat = list_loss(scores[valid].ravel(), positive.ravel(), **kwargs)
    grad[valid] = flat.reshape(-1, scores.shape[1])
    return loss, grad
