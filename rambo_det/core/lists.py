"""Blackbox gradients of rank-based losses on many lists at once, by counting.

Whatever has one entry a positive, a list or a group is on the CPU, wherever the N scores are.

Only the ranks of positives carry a gradient, so nothing is sorted but the P positives. With the
positives of a list sorted, ``t_k`` the score of the k-th less the margin α, ``b`` the negatives:

    n_k = #{b >= t_k}     r_k = k + n_k     g_k = ∂L/∂r_k      (Rolínek et al., CVPR 2020)
    t'_k = t_k + λ g_k    r'_k its rank likewise
    ∂L/∂a_k = (r'_k - r_k) / λ              ∂L/∂b = (#{k: t'_k > b} - #{k: t_k > b}) / λ

which is ``(rk(y + λg) - rk(y)) / λ`` of the blackbox rule to the last digit;
:class:`.step.EachLift` says what it has instead. A negative that ties with a positive ranks above
it; positives that tie rank in order of position, before and after.

There is a group of lists for the scores of each class and one for those of all classes. A group has
J lists, one for each IoU threshold (a single one where there are none): the background is negative
in all of them, a positive that misses a threshold is negative in that one's. So the N scores meet
the thresholds of a group once, and only the P positives are looked at J times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .counting import NativeCounting, Thresholds, counting_for
from .entries import Entries
from .keys import ceil_float32, list_of
from .memory import Stored
from .negatives import Negatives
from .objectives import Objective, average_precision
from .processes import Gathered, Processes
from .pull import Before, Moved, pull
from .step import EachLift, FixedStep, MedianLift, Step


@dataclass
class Ranking:
    """How a batch is ranked.

    Attributes:
        per_class: rank each class's scores, one group a column.
        interclass: rank the scores of all classes as one group.
        beta: β in [0, 1], the share of the interclass term in the loss.
        objective: value and slope of the loss for each positive, see :mod:`.objectives`.
        step: the rule that says how far positives move in the second ranking, see :mod:`.step`.
        margin: α >= 0, in units of score: a positive must beat a negative by more than it.
        levels: the number J of IoU thresholds; 0: there are none, and J is 1.
    """

    per_class: bool
    interclass: bool
    beta: float
    objective: Objective
    step: Step | EachLift
    margin: float
    levels: int = 0

    @property
    def num_lists(self) -> int:
        """J, the lists of a group."""
        return max(self.levels, 1)


@dataclass
class ListResult:
    """What :func:`rank_lists` gives; group c is that of class c, group C that of all classes.

    Attributes:
        loss: scalar float64, (1-β) · mean over the classes present + β · that of all classes.
        losses: ``(C + 1,)`` float64, of each group the mean over its lists; 0 for one that is not
            ranked, or has no positive (here, in another process or in the memory).
        present: ``(C + 1,)`` bool, the groups that are ranked and have one.
        above: ``(J, P)`` int64, negatives above each positive of all processes (within the margin),
            in the lists of its class if those are ranked.
        change: ``(J, P)`` int64, by how much the blackbox step changes its rank there.
        thresholds: of the groups; None where nothing is positive.
        grad: ``(N, C)``, of the loss by this process's scores; None where nothing is positive.
    """

    loss: Tensor
    losses: Tensor
    present: Tensor
    above: Tensor
    change: Tensor
    thresholds: Thresholds | None
    grad: Tensor | None


@torch.no_grad()
def rank_lists(
    scores: Tensor,
    gt_classes: Tensor,
    high: float,
    own: tuple[Tensor, Tensor],
    found: Gathered,
    how: Ranking,
    processes: Processes,
    stored: Stored | None = None,
    dtype: torch.dtype = torch.float32,
) -> ListResult:
    """Losses of all lists, and the gradient of what they add up to at unit upstream gradient.

    Args:
        scores: ``(N, C)`` float32, contiguous or strided; finite.
        gt_classes: ``(N,)`` int64.
        high: at least the highest score.
        own: ``(Q,)`` int64 each, rows and columns of the positives here.
        found: the positives of all processes.
        how: what is ranked and how.
        processes: those that call this with their part of the batch.
        stored: what joins the lists of the classes, which are asked for then, without a gradient
            of its own: remembered positives, the same in all processes, and this one's negatives.
        dtype: of the gradient, float32 or float64: computed in float64, rounded once.
    """
    num_classes, here = scores.shape[1], found.keys.shape[0]
    counting = counting_for(scores.device)
    if (step := _fusible(how)) and processes.size == 1 and isinstance(counting, NativeCounting):
        fused = counting.average_precision(
            scores, gt_classes, high, (found.keys, own[0]), stored, (how.per_class, how.interclass),
            step, how.margin, how.beta, dtype,
        )  # fmt: skip
        if fused is None:
            return _nothing(num_classes, here, how.num_lists)
        loss, losses, present, above, change, thresholds, grad = fused
        return ListResult(loss, losses, present, above[None], change[None], thresholds, grad)
    # One after the other: the groups of the classes, the memory, the group of all classes.
    keys = [found.keys] * how.per_class + ([stored.keys()] if stored else [])
    if how.interclass:
        keys.append(found.keys + ((num_classes - list_of(found.keys)) << 32))
    entries = Entries(torch.cat(keys), how.levels)
    if entries.keys.shape[0] == 0:
        return _nothing(num_classes, here, how.num_lists)
    ranked = counting.rank(entries.keys, (num_classes + 1) * how.num_lists, how.margin)
    negatives = Negatives(
        counting, scores, gt_classes, high, stored, entries, ranked.bounds, processes
    )
    lists, num = ranked.lists, ranked.bounds.diff()

    compared, moved = negatives.thresholds(ranked.at), None
    if type(how.step) is EachLift:
        after = negatives.moved(compared, ceil_float32(ranked.start + how.step.lift))
        above, still = negatives.count_both(compared, after)
        moved = Moved(after, still)
    else:
        above = negatives.count(compared)
    rank = above + ranked.rank
    summand, slope = how.objective(
        rank.double(), ranked.rank.double(), num.index_select(0, lists).double()
    )
    losses = torch.zeros_like(num, dtype=torch.float64)
    losses.index_add_(0, lists, summand)
    weighed, present, weight = _weigh(losses, num, how)
    before = Before(ranked, compared, above, summand, slope, losses, weight, moved)
    done = pull(before, how.step, counting, negatives, dtype)

    change = entries.grid(ranked, done.change, done.demoted_change)
    items = entries.grid(ranked, done.positives, done.demoted)
    _put_own(done.grad, items.sum(dim=0), own, found.first, here, how)
    return ListResult(
        loss=(weighed * weight).sum(),
        losses=weighed.view(-1, how.levels).mean(dim=1) if how.levels else weighed,
        present=present,
        above=entries.grid(ranked, above)[:, :here],
        change=change[:, :here],
        thresholds=compared.groups,
        grad=done.grad,
    )


def _fusible(how: Ranking) -> tuple[float, int, bool] | None:
    """Lift or λ, number of the rule, whether the loss is -log AP; None: there is no fused way."""
    if how.levels or how.objective is not average_precision:
        return None
    # Of these types alone: a subclass may have a rule of its own.
    if type(how.step) is FixedStep:
        return how.step.lambda_, 1, False
    if type(how.step) is EachLift:
        return how.step.lift, 2, False
    return (how.step.lift, 0, how.step.log) if type(how.step) is MedianLift else None


def _nothing(num_classes: int, here: int, levels: int) -> ListResult:
    losses = torch.zeros(num_classes + 1, dtype=torch.float64, device="cpu")
    counts = torch.zeros((levels, here), dtype=torch.int64, device="cpu")
    return ListResult(losses.sum(), losses, losses > 0, counts, counts, None, None)


def _weigh(losses: Tensor, num: Tensor, how: Ranking) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``(L,)``, the groups present ``(C + 1,)``, the weight of each list ``(L,)``."""
    present = num.view(-1, how.num_lists)[:, 0] > 0
    weight = present.double()
    weight[:-1] /= present[:-1].sum().clamp(min=1)
    weight[:-1] *= 1 - how.beta
    weight[-1] *= how.beta
    if how.levels:
        weight = (weight / how.levels).repeat_interleave(how.levels)
        # Where no positive of a class reaches a threshold, its AP there is 0.
        losses = losses.masked_fill((num == 0) & (weight > 0), 1.0)
    return losses, present, weight


def _put_own(
    grad: Tensor, items: Tensor, own: tuple[Tensor, Tensor], first: int, here: int, how: Ranking
) -> None:
    """Puts the gradient of this process's positives in its place, from ``(I,)`` of all entries."""
    number = own[0].shape[0]
    value = items[first : first + number]
    if how.per_class and how.interclass:
        start = items.shape[0] - here + first
        value = value + items[start : start + number]
    grad[own] = value.to(grad.device, grad.dtype)
