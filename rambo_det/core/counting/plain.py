"""The counting passes in plain PyTorch, on any device: what the other backends are held against.

Negatives meet thresholds by ``searchsorted`` into the few thresholds, then ``bincount`` and a
cumulative sum: nothing of N is sorted. Those below every threshold of their group are dropped
before any of it. Thresholds and counts are on the CPU, wherever the scores are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..keys import ceil_float32, decode, make_keys, order_code64
from .groups import Ranked, Thresholds

#: Scores that are looked at in one go.
_CHUNK = 1 << 22


def find(scores: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`.groups.Counting.find`."""
    rows = ((gt_classes >= 0) & (gt_classes < scores.shape[1])).nonzero().view(-1)
    columns = gt_classes.index_select(0, rows)
    return rows, columns, make_keys(columns, scores[rows, columns])


def rank(keys: Tensor, num_lists: int, margin: float) -> Ranked:
    """See :meth:`.groups.Counting.rank`."""
    number = keys.shape[0]
    rising, order = keys.flip(0).sort(stable=True)
    lists = rising >> 32
    bounds = torch.searchsorted(rising, torch.arange(num_lists + 1, device=keys.device) << 32)
    ranks = bounds.index_select(0, lists + 1) - torch.arange(number, device=keys.device)
    start = decode(rising).double() - margin
    return Ranked((number - 1) - order, lists, bounds, ranks, start, ceil_float32(start))


def move(ranked: Ranked, lambda_: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """See :meth:`.groups.Counting.move`."""
    moved = lambda_.index_select(0, ranked.lists) * slope + ranked.start
    order = argsort(moved, ranked.bounds)
    return order, ceil_float32(moved.index_select(0, order))


def argsort(values: Tensor, bounds: Tensor) -> Tensor:
    """See :meth:`.groups.Counting.argsort`."""
    order = order_code64(values).argsort(stable=True)
    if bounds.shape[0] == 2:
        return order
    segment = _segments(bounds, values.shape[0])
    return order.index_select(0, segment.index_select(0, order).argsort(stable=True))


def _segments(bounds: Tensor, number: int) -> Tensor:
    places = torch.arange(number, device=bounds.device)
    return torch.searchsorted(bounds[1:], places, right=True)


def _moved(thresholds: Thresholds, device: torch.device) -> Thresholds:
    at, bounds, through = thresholds
    return Thresholds(
        at.to(device), bounds.to(device), None if through is None else through.to(device)
    )


def _keys(thresholds: Thresholds) -> Tensor:
    return make_keys(_segments(thresholds.bounds, thresholds.at.shape[0]), thresholds.at)


def at_or_below(values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
    """``(M,)`` int64: thresholds at or below each value, those of all earlier groups included."""
    return torch.searchsorted(_keys(thresholds), make_keys(groups.long(), values), right=True)


def _at_or_above(below: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
    """``(T,)`` int64: values at or above each threshold, from :func:`at_or_below` of them."""
    number, bounds = thresholds.at.shape[0], thresholds.bounds
    bins = torch.bincount(below, minlength=number + 1).cumsum(0)
    segment = _segments(bounds, number)
    through_group = torch.bincount(groups, minlength=bounds.shape[0] - 1).cumsum(0)
    return through_group.index_select(0, segment) - bins[:number]


def count_listed(values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
    """See :meth:`.groups.Counting.count_listed`."""
    thresholds = _moved(thresholds, values.device)
    below = at_or_below(values, groups, thresholds)
    return _at_or_above(below, groups, thresholds).cpu()


def _negatives(scores: Tensor, gt_classes: Tensor) -> Tensor:
    columns = torch.arange(scores.shape[1], device=scores.device)
    return (gt_classes[:, None] != columns) & (gt_classes[:, None] >= 0)


def _near(scores: Tensor, gt_classes: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Position, group and score of each negative at or above its group's floor ``(C + 1,)``."""
    negative, columns = _negatives(scores, gt_classes), scores.shape[1]
    row, column = (negative & (scores >= floor[:-1])).nonzero(as_tuple=True)
    row_of_all, column_of_all = (negative & (scores >= floor[-1])).nonzero(as_tuple=True)
    groups = torch.cat([column, torch.full_like(column_of_all, columns)])
    position = torch.cat([row, row_of_all]) * columns + torch.cat([column, column_of_all])
    return position, groups, scores.reshape(-1).index_select(0, position)


def _chunks(scores: Tensor, gt_classes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows that are looked at in one go: what is made of their scores takes a bounded memory."""
    rows = max(_CHUNK // max(scores.shape[1], 1), 1)
    return list(zip(scores.split(rows), gt_classes.split(rows), strict=True))


def count(scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds) -> Tensor:
    """See :meth:`.groups.Counting.count`."""
    thresholds = _moved(thresholds, scores.device)
    above = torch.zeros_like(thresholds.at, dtype=torch.int64)
    for part, classes in _chunks(scores, gt_classes):
        _, groups, values = _near(part, classes, thresholds.floor())
        below = at_or_below(values, groups, thresholds)
        above += _at_or_above(below, groups, thresholds)
    return above.cpu()


def write(
    scores: Tensor,
    gt_classes: Tensor,
    high: float,
    before: Thresholds,
    after: Thresholds,
    divisor: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See :meth:`.groups.Counting.write`."""
    device = scores.device
    before, after = _moved(before, device), _moved(after, device)
    divisor, weight = divisor.to(device), weight.to(device)
    grad = torch.empty(scores.shape, dtype=dtype, device=device)
    above = torch.zeros_like(after.at, dtype=torch.int64)
    start = 0
    for part, classes in _chunks(scores, gt_classes):
        position, groups, values = _near(part, classes, before.floor())
        was = at_or_below(values, groups, before)
        now = at_or_below(values, groups, after)
        moved = through(was, groups, before) - through(now, groups, after)
        moved = moved / divisor.index_select(0, groups) * weight.index_select(0, groups)
        flat = torch.zeros(part.numel(), dtype=torch.float64, device=device)
        # A score is in one group of a column and in that of all: each place once for each of them.
        joined = groups == scores.shape[1]
        for of in (~joined, joined):
            where = position[of]
            flat[where] = flat[where] + moved[of]
        grad[start : start + len(part)] = flat.view(part.shape)
        start += len(part)
        above += _at_or_above(now, groups, after)
    return grad, above.cpu()


def through(below: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
    """``(M,)`` float64: weights of its group at or below each value, from :func:`at_or_below`."""
    if thresholds.through is None:
        return (below - thresholds.bounds.index_select(0, groups)).double()
    return thresholds.through.index_select(0, below + groups)


def highest(
    scores: Tensor, gt_classes: Tensor, thresholds: Thresholds | None, size: int
) -> tuple[Tensor, Tensor]:
    """See :meth:`.groups.Counting.highest`."""
    base = scores.new_zeros(scores.shape[1])
    if thresholds is not None:
        base = thresholds.base().to(scores.device)
    values, columns = scores.new_empty(0), gt_classes.new_empty(0).int()
    for part, classes in _chunks(scores, gt_classes):
        row, column = _negatives(part, classes).nonzero(as_tuple=True)
        values = torch.cat([values, part[row, column]])
        columns = torch.cat([columns, column.int()])
        if values.shape[0] > size:
            above = values - base.index_select(0, columns)
            kept = above.topk(size, sorted=False).indices
            values, columns = values.index_select(0, kept), columns.index_select(0, kept)
    return values, columns
