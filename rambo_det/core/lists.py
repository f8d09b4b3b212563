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

from .blocks import make_block
from .cells import Cells, Thresholds, Unsettled
from .gradient import Gradient
from .keys import argsort_in_lists, ceil_float32, decode, make_keys, order_code, spread
from .memory import Stored
from .objectives import Objective
from .processes import Gathered, Processes
from .step import Step
from .targets import Targets, positions_of


@dataclass
class Ranking:
    """How a batch is ranked.

    Attributes:
        per_class: rank each class's scores, one list a column.
        interclass: rank the scores of all classes as one list.
        objective: value and slope of the loss for each positive, see :mod:`.objectives`.
        step: the rule that gives λ for each list, see :mod:`.step`.
        margin: α >= 0, in units of score: a positive must beat a negative by more than it.
    """

    per_class: bool
    interclass: bool
    objective: Objective
    step: Step
    margin: float


@dataclass
class ListResult:
    """What :func:`rank_lists` gives; list c is that of class c, list C that of all classes.

    Attributes:
        losses: ``(C + 1,)`` float64, 0 for a list without a positive or not asked for.
        present: ``(C + 1,)`` bool, the lists that were ranked: asked for, and with a positive
            (here, in another process or in the memory).
        outranked: ``(P,)`` bool, positives with a negative above them (within the margin), in
            the list of their class if that was asked for; P counts those of all processes.
        zero_grad: ``(P,)`` bool, positives whose gradient is zero there.
        gradient: of each list's loss by the scores; None where nothing is positive.
    """

    losses: Tensor
    present: Tensor
    outranked: Tensor
    zero_grad: Tensor
    gradient: Gradient | None


class _Positives:
    """Positives, own and remembered, by list, then by rising score, the last one first in a tie.

    Attributes:
        score, lists: ``(P,)`` float32 and int64.
        order: ``(P,)`` int64, where each was before.
        num: ``(L,)`` int64, positives of each list, one at least.
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


@torch.no_grad()
def rank_lists(
    scores: Tensor,
    targets: Targets,
    found: Gathered,
    high: float,
    how: Ranking,
    processes: Processes,
    stored: Stored | None = None,
) -> ListResult:
    """Losses of all lists and their gradient at unit upstream gradient.

    Args:
        scores: ``(N, C)`` float32 or half precision, contiguous or strided; finite.
        targets: which of them are positive, which rows are in no list.
        found: the positives of all processes, keys of their classes.
        high: at least the highest score.
        how: what is ranked and how.
        processes: those that call this with their part of the batch.
        stored: what joins the lists of the classes, which are asked for then, without a gradient
            of its own: remembered positives, the same in all processes, and this one's negatives.
    """
    num_classes, here = scores.shape[1], found.keys.shape[0]
    # One after the other: the lists of the classes, the memory, the list of all classes.
    keys = [found.keys] * how.per_class + ([stored.positives] if stored else [])
    lists = [key >> 32 for key in keys]
    if how.interclass:
        keys.append(found.keys)
        lists.append(torch.full_like(found.keys, num_classes))
    key, of = torch.cat(keys), torch.cat(lists)
    num = torch.bincount(of, minlength=num_classes + 1)
    present = num > 0
    losses = torch.zeros(num_classes + 1, dtype=torch.float64, device=key.device)
    if key.shape[0] == 0:
        return ListResult(losses, present, present[:0], present[:0], None)
    names = present.nonzero().view(-1)
    of = torch.searchsorted(names, of)
    positives = _Positives(decode(key), of, num.index_select(0, names))

    blocks = []
    flat = how.interclass and here > 0
    if (ranked := names.shape[0] - flat) > 0:
        columns = names[:ranked] if ranked < num_classes else None
        blocks.append(make_block(scores, targets, columns, 0, joined=False))
    if flat:
        blocks.append(make_block(scores, targets, None, ranked, joined=True))

    at = ceil_float32(positives.score.double() - how.margin)
    floor = at.index_select(0, positives.first).double()
    memory = None
    if stored:
        # What no threshold will ever be compared with stays out.
        least = torch.full_like(losses, torch.inf).index_copy_(0, names, floor).float()
        kept = positions_of(stored.scores >= least.index_select(0, stored.lists))
        of_kept = torch.searchsorted(names, stored.lists.index_select(0, kept).long())
        memory = stored.scores.index_select(0, kept), of_kept
    cells = Cells(blocks, floor, high, here, memory)
    values, divisor, above, change, moves = _rank(positives, at, cells, how, processes)

    # This process's positives, of each block.
    mine = [slice(found.first, found.first + targets.rows.shape[0])] * len(blocks)
    if flat and len(blocks) > 1:
        start = key.shape[0] - here + found.first
        mine[1] = slice(start, start + targets.rows.shape[0])
    table, near, moved = moves
    gradient = Gradient(
        blocks=blocks,
        cells=cells,
        names=names,
        table=table,
        position=torch.cat([near.position, *cells.own]),
        change=torch.cat([moved, *(change[part].int() for part in mine)]),
        lists=torch.cat([cells.list_of(near.cell), *(of[part] for part in mine)]),
        divisor=divisor,
    )
    return ListResult(
        losses=losses.index_copy_(0, names, values),
        present=present,
        outranked=above[:here] > 0,
        zero_grad=change[:here] == 0,
        gradient=gradient,
    )


def _rank(
    positives: _Positives,
    at: Tensor,
    cells: Cells,
    how: Ranking,
    processes: Processes,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Unsettled, Tensor]]:
    """Losses and divisors ``(L,)``; of each positive, in the order they came in, the negatives
    above it and its change of rank ``(P,)``; those of the negatives: of each cell ``(K + 1,)``,
    then of some that have one of their own."""
    of, num, rank_pos = positives.lists, positives.num, positives.rank
    before = Thresholds(cells, at, of)
    near = cells.unsettled(before.cell)
    below = before.at_or_below(near)
    above = cells.at_or_above(before, below)
    rank = rank_pos + processes.sum(above)
    summand, slope = how.objective(rank.double(), rank_pos.double(), spread(num, of).double())
    losses = torch.zeros(num.shape[0], dtype=torch.float64, device=of.device)
    losses.index_add_(0, of, summand)
    lambda_, divisor = how.step(slope, of, num, losses)
    moved = positives.score.double() - how.margin + spread(lambda_, of) * slope
    # Ties among moved positives go to the one that led before the move.
    order = argsort_in_lists(moved, of, num.shape[0])
    after = Thresholds(cells, ceil_float32(moved.index_select(0, order)), of)
    newly = cells.unsettled(after.cell, except_in=before.cell)
    near = Unsettled(*map(torch.cat, zip(near, newly, strict=True)))
    passed = after.at_or_below(near)
    moved_above = cells.at_or_above(after, passed)
    change = torch.empty_like(rank)
    change.index_copy_(0, order, rank_pos + processes.sum(moved_above)).sub_(rank)

    # In a cell without a threshold all scores have the same thresholds below them.
    below = torch.cat([below, before.through.index_select(0, newly.cell)])
    return (
        losses,
        divisor,
        torch.empty_like(above).index_copy_(0, positives.order, above),
        torch.empty_like(change).index_copy_(0, positives.order, change),
        (before.through - after.through, near, below - passed),
    )
