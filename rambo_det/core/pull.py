"""The gradient: which negatives a step of the positives passes, and how hard each is pushed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .counting import Counting, Ranked
from .negatives import Compared, Negatives
from .step import EachLift, Slopes, Step


class Moved(NamedTuple):
    """Positives after one and the same move of all: their thresholds, in the same order, and
    ``(P,)`` int64, the negatives above each."""

    compared: Compared
    above: Tensor


class Before(NamedTuple):
    """The first ranking.

    Attributes:
        ranked: the positives in their lists.
        compared: their thresholds.
        above: ``(P,)`` int64, negatives above each.
        summand, slope: ``(P,)`` float64, of the objective.
        losses: ``(L,)`` float64, of each list.
        weight: ``(L,)`` float64, of each list in the loss; 0 for one that is not ranked.
        moved: the second ranking, where the step does not depend on the first: that of
            :class:`.step.EachLift`; None: it does.
    """

    ranked: Ranked
    compared: Compared
    above: Tensor
    summand: Tensor
    slope: Tensor
    losses: Tensor
    weight: Tensor
    moved: Moved | None


class Pull(NamedTuple):
    """What comes of the second ranking.

    Attributes:
        grad: ``(N, C)``, of the negatives, 0 elsewhere.
        positives: ``(P,)`` float64, the gradient of each positive, by list, then rising.
        change: ``(P,)`` int64, of its rank.
        demoted, demoted_change: ``(D,)`` float64 and int64, the same of the positives that miss a
            threshold, in the lists where they are negatives; None: none misses one.
    """

    grad: Tensor
    positives: Tensor
    change: Tensor
    demoted: Tensor | None
    demoted_change: Tensor | None


def pull(
    before: Before, step: Step | EachLift, counting: Counting, negatives: Negatives,
    dtype: torch.dtype,
) -> Pull:  # fmt: skip
    """Ranks once more after ``step``; ``dtype`` is that of the gradient of the negatives."""
    if before.moved is not None:
        return _by_loss(before, before.moved, negatives, dtype)
    assert not isinstance(step, EachLift)
    return _by_rank(before, step, counting, negatives, dtype)


def _by_loss(before: Before, moved: Moved, negatives: Negatives, dtype: torch.dtype) -> Pull:
    was, now = before.compared, moved.compared
    change = moved.above - before.above
    pulled = before.summand * before.weight.index_select(0, before.ranked.lists)
    pulled = pulled.masked_fill_(change == 0, 0)
    shares = pulled / change.abs().clamp_(min=1)
    demoted_change = negatives.demotion(was, now)
    was, now = was.weighted(shares), now.weighted(shares)
    one = torch.ones_like(was.groups.bounds[1:], dtype=torch.float64)
    grad, _ = negatives.write(was, now, one, one, dtype)
    return Pull(grad, -pulled, change, negatives.demotion(was, now), demoted_change)


def _by_rank(
    before: Before, step: Step, counting: Counting, negatives: Negatives, dtype: torch.dtype
) -> Pull:
    ranked, weight, was = before.ranked, before.weight, before.compared
    lambda_, divisor = step(Slopes(before.slope, ranked.bounds, before.losses, counting.argsort))
    order, at = counting.move(ranked, lambda_, before.slope)
    now = negatives.thresholds(at)
    demoted = demoted_change = negatives.demotion(was, now)
    if demoted is None:
        grad, moved_above = negatives.write(was, now, divisor, weight, dtype)
    else:
        factors = (weight / divisor).masked_fill_(weight == 0, 0)
        factors = factors.repeat_interleave(ranked.bounds.diff())
        was, now = was.weighted(factors), now.weighted(factors)
        one = torch.ones_like(was.groups.bounds[1:], dtype=torch.float64)
        grad, moved_above = negatives.write(was, now, one, one, dtype)
    moved_above = negatives.complete(moved_above, now)
    rank = before.above + ranked.rank
    change = torch.empty_like(rank).index_copy_(0, order, moved_above.add_(ranked.rank)).sub_(rank)

    def value(change: Tensor, lists: Tensor) -> Tensor:
        # In this order: to the last digit what the blackbox rule gives.
        return change / divisor.index_select(0, lists) * weight.index_select(0, lists)

    if demoted_change is not None:
        demoted = value(demoted_change, negatives.demoted_lists)
    return Pull(grad, value(change, ranked.lists), change, demoted, demoted_change)
