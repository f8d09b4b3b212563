"""Blackbox gradients of rank-based losses on many lists at once, by counting.

Only the ranks of positives carry a gradient, so nothing is sorted but the P positives. With the
positives of a list sorted, ``t_k`` the score of the k-th less the margin α, ``b`` the negatives:

    n_k = #{b >= t_k}     r_k = k + n_k     g_k = ∂L/∂r_k      (Rolínek et al., CVPR 2020)
    t'_k = t_k + λ g_k    r'_k its rank likewise
    ∂L/∂a_k = (r'_k - r_k) / λ              ∂L/∂b = (#{k: t'_k > b} - #{k: t_k > b}) / λ

which is ``(rk(y + λg) - rk(y)) / λ`` of the blackbox rule to the last digit. A negative that ties
with a positive ranks above it; positives that tie rank in order of position, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .keys import ceil_float32, decode, make_keys
from .objectives import Objective
from .step import Step


@dataclass
class Lists:
    """Which score belongs to which list, and which of them are positive.

    Attributes:
        scores: ``(N, C)`` float32, contiguous or strided.
        rows, cols: ``(P,)`` int64, the positions of the positives.
        ignored: ``(N,)`` bool, rows that are in no list, or None.
        per_class: one list a column (AP_C) or all scores in one list (interclass AP).
    """

    scores: Tensor
    rows: Tensor
    cols: Tensor
    ignored: Tensor | None
    per_class: bool

    @property
    def num_lists(self) -> int:
        return self.scores.shape[1] if self.per_class else 1

    def list_of(self, cols: Tensor) -> Tensor:
        return cols if self.per_class else torch.zeros_like(cols)


@dataclass
class ListResult:
    """What :func:`rank_lists` gives; shapes with L lists, P positives of this call, G gradients.

    Attributes:
        losses: ``(L,)`` float64, 0 for a list without a positive.
        present: ``(L,)`` bool, the lists that have a positive (here or in the memory).
        index: ``(G,)`` int64 positions in the flattened scores that have a gradient.
        grad: ``(G,)`` float64, gradient of the list's loss there.
        lists: ``(G,)`` int64, the list of each.
        outranked: ``(P,)`` bool, positives with a negative above them (within the margin).
        zero_grad: ``(P,)`` bool, positives whose gradient is zero.
    """

    losses: Tensor
    present: Tensor
    index: Tensor
    grad: Tensor
    lists: Tensor
    outranked: Tensor
    zero_grad: Tensor


@dataclass
class _Negatives:
    """The negatives that reach the lowest threshold of their list; no other can change a rank."""

    index: Tensor
    lists: Tensor
    keys: Tensor

    def at_or_above(self, thresholds: Tensor, num_lists: int) -> tuple[Tensor, Tensor]:
        """Counts the negatives of its list at or above each threshold key.

        Returns ``(P,)`` counts for the ``(P,)`` thresholds, and for each negative the number of
        thresholds at or below it, those of all earlier lists included.
        """
        ordered, order = thresholds.sort()
        below = torch.searchsorted(ordered, self.keys, right=True)
        passed = torch.bincount(below, minlength=len(thresholds) + 1).cumsum(0)[:-1]
        per_list = torch.bincount(self.lists, minlength=num_lists)
        through_list = per_list.cumsum(0)[ordered >> 32]
        counts = torch.empty_like(passed)
        counts[order] = through_list - passed
        return counts, below


def _select_negatives(lists: Lists, floor: Tensor) -> _Negatives:
    """Negatives of ``lists`` at or above their list's ``(L,)`` float32 ``floor``."""
    mask = lists.scores >= (floor if lists.per_class else floor[0])
    mask[lists.rows, lists.cols] = False
    if lists.ignored is not None:
        mask[lists.ignored] = False
    rows, cols = mask.nonzero(as_tuple=True)
    of = lists.list_of(cols)
    return _Negatives(
        rows * lists.scores.shape[1] + cols, of, make_keys(of, lists.scores[rows, cols])
    )


def _sort_within_lists(values: Tensor, lists: Tensor) -> Tensor:
    """Order by list, then by falling value; equal values keep their order."""
    order = values.argsort(descending=True, stable=True)
    return order[lists[order].argsort(stable=True)]


def _rank_within_lists(values: Tensor, lists: Tensor, num_pos: Tensor) -> Tensor:
    """Rank of each positive among the positives of its list, 1 = highest; int64."""
    order = _sort_within_lists(values, lists)
    first = (num_pos.cumsum(0) - num_pos)[lists]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks - first + 1


def _count_stored(stored: Tensor, thresholds: Tensor) -> Tensor:
    """Stored negatives of its list at or above each threshold key; ``stored``: sorted rows."""
    at = torch.searchsorted(stored, thresholds.expand(len(stored), -1).contiguous())
    ends = ((thresholds >> 32) + 1) << 32
    end = torch.searchsorted(stored, ends.expand(len(stored), -1).contiguous())
    return (end - at).sum(0)


@torch.no_grad()
def rank_lists(
    lists: Lists,
    objective: Objective,
    step: Step,
    margin: float,
    stored: tuple[Tensor, Tensor] | None = None,
) -> ListResult:
    """Losses of all lists and their gradient at unit upstream gradient.

    Args:
        lists: the scores and what they are.
        objective: value and slope of the loss for each positive, see :mod:`.objectives`.
        step: the rule that gives λ for each list, see :mod:`.step`.
        margin: α >= 0, in units of score: a positive must beat a negative by more than it.
        stored: keys of remembered positives ``(M,)`` and of remembered negatives ``(S, K)``, each
            row sorted; they join the lists without a gradient of their own.
    """
    num_lists, num_own = lists.num_lists, len(lists.rows)
    score = lists.scores[lists.rows, lists.cols]
    of = lists.list_of(lists.cols)
    if stored is not None:
        score = torch.cat([score, decode(stored[0])])
        of = torch.cat([of, stored[0] >> 32])
    threshold = score.double() - margin
    num_pos = torch.bincount(of, minlength=num_lists)
    floor = torch.full((num_lists,), torch.inf, dtype=torch.float64, device=score.device)
    floor = ceil_float32(floor.scatter_reduce(0, of, threshold, "amin"))
    negatives = _select_negatives(lists, floor)

    def count(at: Tensor) -> tuple[Tensor, Tensor]:
        keys = make_keys(of, ceil_float32(at))
        counts, below = negatives.at_or_above(keys, num_lists)
        return (counts if stored is None else counts + _count_stored(stored[1], keys)), below

    above, below = count(threshold)
    rank_pos = _rank_within_lists(score, of, num_pos)
    rank = rank_pos + above
    value, slope = objective(rank.double(), rank_pos.double(), num_pos[of].double())
    losses = torch.zeros(num_lists, dtype=torch.float64, device=score.device)
    losses.index_add_(0, of, value)
    lambda_, divisor = step(slope, of, num_pos, losses)
    moved = threshold + lambda_[of] * slope
    moved_above, moved_below = count(moved)
    # Ties among moved positives go to the one that led before the move.
    before = _sort_within_lists(score, of)
    moved_pos = torch.empty_like(rank_pos)
    moved_pos[before] = _rank_within_lists(moved[before], of[before], num_pos)
    grad_pos = (moved_pos + moved_above - rank).double() / divisor[of]

    passed = below - moved_below
    changed = passed.nonzero(as_tuple=True)[0]
    neg_lists = negatives.lists[changed]
    grad_neg = passed[changed].double() / divisor[neg_lists]
    own = slice(0, num_own)
    return ListResult(
        losses=losses,
        present=num_pos > 0,
        index=torch.cat(
            [lists.rows * lists.scores.shape[1] + lists.cols, negatives.index[changed]]
        ),
        grad=torch.cat([grad_pos[own], grad_neg]),
        lists=torch.cat([of[own], neg_lists]),
        outranked=above[own] > 0,
        zero_grad=grad_pos[own] == 0,
    )
