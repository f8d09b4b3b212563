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

from .cells import Cells, Thresholds, Unsettled
from .gradient import Gradient, Layout
from .keys import argsort_in_lists, ceil_float32, decode, make_keys, order_code, spread
from .objectives import Objective
from .step import Step
from .targets import Lists


@dataclass
class ListResult:
    """What :func:`rank_lists` gives; shapes with L lists, P positives of this call.

    Attributes:
        losses: ``(L,)`` float64, 0 for a list without a positive.
        present: ``(L,)`` bool, the lists that have a positive (here or in the memory).
        outranked: ``(P,)`` bool, positives with a negative above them (within the margin).
        zero_grad: ``(P,)`` bool, positives whose gradient is zero.
        gradient, layout: of each list's loss by its scores; None where nothing is positive.
    """

    losses: Tensor
    present: Tensor
    outranked: Tensor
    zero_grad: Tensor
    gradient: Gradient | None
    layout: Layout

    def dense(self, upstream: Tensor, dtype: torch.dtype) -> Tensor:
        """``(N, C)`` gradient where ``upstream`` ``(L,)`` arrives at the losses."""
        if self.gradient is None:
            return torch.zeros(self.layout.shape, dtype=dtype, device=self.losses.device)
        return self.gradient.dense(upstream, self.layout, dtype)

    @property
    def index(self) -> Tensor:
        """``(G,)`` int64 positions in the flattened scores that have a gradient."""
        return self.dense(torch.ones_like(self.losses), torch.float64).flatten().nonzero()[:, 0]

    @property
    def grad(self) -> Tensor:
        """``(G,)`` float64, the gradient of the list's loss there."""
        return self.dense(torch.ones_like(self.losses), torch.float64).flatten()[self.index]


class _Positives:
    """Positives, own and remembered, by list, then by rising score, the last one first in a tie.

    Attributes:
        score, lists: ``(P,)`` float32 and int64.
        order: ``(P,)`` int64, where each was before.
        num: ``(L,)`` int64, positives of each list.
        rank: ``(P,)`` int64, rank among the positives of the list, 1 = highest.
        first: ``(L,)`` int64, the lowest of each list.
    """

    def __init__(self, score: Tensor, lists: Tensor, num: Tensor) -> None:
        key = make_keys(lists, score) if num.shape[0] > 1 else order_code(score)
        self.order = key.argsort(stable=True, descending=True).flip(0)
        self.score = score.index_select(0, self.order)
        self.lists = lists.index_select(0, self.order)
        self.num = num
        ends = num.cumsum(0)
        self.first = ends - num
        places = torch.arange(score.shape[0], device=score.device)
        self.rank = spread(ends, self.lists) - places


def _stored_above(stored: Tensor, names: Tensor, at: Tensor, lists: Tensor) -> Tensor:
    """Stored negatives of its list at or above each threshold; ``stored``: sorted rows of keys."""

    def position(keys: Tensor) -> Tensor:
        return torch.searchsorted(stored, keys.expand(len(stored), -1).contiguous()).sum(0)

    return position((names + 1) << 32)[lists] - position(make_keys(names[lists], at))


def _floor(positives: _Positives, at: Tensor) -> Tensor:
    """``(L,)`` float64, the lowest threshold of each list; the largest float32 if it has none."""
    lowest = at.index_select(0, positives.first.clamp(max=at.shape[0] - 1)).double()
    if lowest.shape[0] == 1:
        return lowest
    return lowest.masked_fill_(positives.num == 0, torch.finfo(torch.float32).max)


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
    num_lists = lists.num_lists
    score, of = lists.positives()
    num_own = score.shape[0]
    if stored is not None:
        score = torch.cat([score, decode(stored[0])])
        of = torch.cat([of, stored[0] >> 32])
    layout = Layout(lists.scores.shape, lists.transposed, None)
    losses = torch.zeros(num_lists, dtype=torch.float64, device=score.device)
    num = torch.bincount(of, minlength=num_lists)
    if score.shape[0] == 0:
        none = torch.zeros(0, dtype=torch.bool, device=score.device)
        return ListResult(losses, num > 0, none, none, None, layout)
    columns = num.nonzero().view(-1) if num_lists > 1 else torch.zeros_like(num)
    if 2 * columns.shape[0] <= num_lists:
        layout = layout._replace(columns=columns)
        lists, of = lists.only(columns), torch.searchsorted(columns, of)
    else:
        columns = torch.arange(num_lists, device=score.device)
    positives = _Positives(score, of, num.index_select(0, columns))
    values, gradient, above, change = _rank(
        lists, positives, objective, step, margin, stored and (stored[1], columns)
    )
    own = torch.empty_like(above)
    return ListResult(
        losses=losses.index_copy_(0, columns, values),
        present=num > 0,
        outranked=own.index_copy(0, positives.order, above)[:num_own] > 0,
        zero_grad=own.index_copy(0, positives.order, change)[:num_own] == 0,
        gradient=gradient,
        layout=layout,
    )


def _rank(
    lists: Lists,
    positives: _Positives,
    objective: Objective,
    step: Step,
    margin: float,
    stored: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Gradient, Tensor, Tensor]:
    """Losses ``(L,)``, the gradient, negatives above and changes of rank ``(P,)`` of positives."""
    of, num, rank_pos = positives.lists, positives.num, positives.rank
    threshold = positives.score.double() - margin
    at = ceil_float32(threshold)
    cells = Cells(lists, _floor(positives, at), at.shape[0])
    before = Thresholds(cells, at, of)
    near = cells.unsettled(before.cell)
    below = before.at_or_below(near)
    above = cells.at_or_above(before, below)
    if stored is not None:
        above += _stored_above(*stored, before.at, of)

    rank = rank_pos + above
    summand, slope = objective(rank.double(), rank_pos.double(), spread(num, of).double())
    losses = torch.zeros(num.shape[0], dtype=torch.float64, device=of.device)
    losses.index_add_(0, of, summand)
    lambda_, divisor = step(slope, of, num, losses)
    moved = threshold + spread(lambda_, of) * slope
    # Ties among moved positives go to the one that led before the move.
    order = argsort_in_lists(moved, of, num.shape[0])
    after = Thresholds(cells, ceil_float32(moved.index_select(0, order)), of)
    newly = cells.unsettled(after.cell, except_in=before.cell)
    near = Unsettled(*map(torch.cat, zip(near, newly, strict=True)))
    passed = after.at_or_below(near)
    moved_above = cells.at_or_above(after, passed)
    if stored is not None:
        moved_above += _stored_above(*stored, after.at, of)
    change_pos = torch.empty_like(rank).index_copy_(0, order, rank_pos + moved_above) - rank

    # In a cell without a threshold all scores have the same thresholds below them.
    below = torch.cat([below, before.through.index_select(0, newly.cell)])
    where, lists_own, change_own = positives.order, of, change_pos
    if stored is not None:
        own = where < lists.targets.rows.shape[0]
        where, lists_own, change_own = where[own], of[own], change_pos[own]
    gradient = Gradient(
        code=cells.code,
        table=before.through - after.through,
        position=torch.cat([near.position, cells.own.index_select(0, where)]),
        change=torch.cat([below - passed, change_own.int()]),
        lists=torch.cat([cells.list_of(near.cell), lists_own]),
        divisor=divisor,
    )
    return losses, gradient, above, change_pos
