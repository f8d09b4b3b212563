"""A slow and simple implementation of the paper in float64, which compares every pair of scores.

``rk(y)`` are the ranks of the scores. The gradient is ``∂L/∂y = (rk(y + λ ∂L/∂rk) - rk(y)) / λ``
over *all* scores, negatives included. Remembered scores enter the ranks that give the loss and its
slope ``∂L/∂rk``. The ``rk`` in the gradient are ranks within the batch alone. This module shares no
code with the package.
"""

import numpy as np


def ranks(y, positive, led_before=None):
    """Returns the rank of each score, 1 = highest. In a tie, a negative ranks above a positive. Two
    positives or two negatives rank in ascending order of ``led_before`` (default: their index)."""
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
    """Returns the gradient (N,) if each positive, alone, moves above all negatives. A positive gets
    minus its summand of the loss, and the negatives that it passes share the summand equally."""
    grad = np.zeros(len(y))
    for k, of_loss in zip(np.flatnonzero(positive), summand, strict=True):
        passed = ~positive & (y >= y[k])
        if passed.any():
            grad[passed] += of_loss / passed.sum()
            grad[k] -= of_loss
    return grad


def list_loss(scores, positive, *, margin, lambda_=None, objective=ap_objective, in_batch=None):
    """Returns (loss, gradient (N,)) of one list of scores. Scores that are not ``in_batch`` are
    remembered: they enter the ranks, but only the positives of the batch enter the loss."""
    y = np.asarray(scores, dtype=np.float64).copy()
    positive = np.asarray(positive, dtype=bool)
    in_batch = np.ones(len(y), dtype=bool) if in_batch is None else in_batch
    of_batch = in_batch[positive]
    num_pos, grad = of_batch.sum(), np.zeros_like(y)
    if num_pos == 0:
        return 0.0, grad
    y[positive] -= margin
    # In a tie, a remembered positive ranks above one of the batch.
    lead = np.arange(len(y)) + len(y) * in_batch
    r = ranks(y, positive, lead)[positive][of_batch].astype(float)
    r_pos = ranks(y[positive], np.ones(len(of_batch), dtype=bool), lead[positive])[of_batch]
    loss, slope = objective(r, r_pos.astype(float), num_pos)
    summand = np.array([objective(*one, num_pos)[0] for one in zip(r, r_pos, strict=True)])
    # The gradient uses the scores of the batch alone.
    y, positive = y[in_batch], positive[in_batch]
    if lambda_ is None:
        grad[in_batch] = pulled_by_loss(y, positive, summand)
        return loss, grad
    rk = ranks(y, positive)
    moved = y.copy()
    moved[positive] += lambda_ * slope
    lead = np.arange(len(y))
    lead[positive] = rk[positive]  # tied positives stay in their old order
    grad[in_batch] = (ranks(moved, positive, lead) - rk) / lambda_
    return loss, grad


def class_lists(scores, gt_classes, number=None, **kwargs):
    """Returns (losses (C,), present (C,), gradients (N, C)): a list per class, no ignored rows.

    The first ``number`` rows are the batch, the others are remembered; None: all are the batch."""
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
    """Returns (loss, gradient (N, C)) of one list with the scores of all classes."""
    valid = gt_classes >= 0
    positive = gt_classes[valid][:, None] == np.arange(scores.shape[1])[None, :]
    grad = np.zeros(scores.shape)
    loss, flat = list_loss(scores[valid].ravel(), positive.ravel(), **kwargs)
    grad[valid] = flat.reshape(-1, scores.shape[1])
    return loss, grad
