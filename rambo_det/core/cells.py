"""A coarse table over scores, that settles all but the few that lie near a threshold.

A binary search for every score is what makes counting slow. Here the range of scores of each list
is cut into cells of one width. Whatever lies in a cell without a threshold has all thresholds of
the lower cells below it and no other: one look into a table. The rest, a few percent, are
compared one by one. The cell of a score is a rising function of it (one rounded subtraction, one
rounded product), the same for scores and thresholds, so nothing depends on where a cell ends:
the counts are exact, only the time depends on how scores spread over the cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .keys import spread
from .targets import Lists, positions_of

#: Cells for each threshold, for each score, and the bounds of their total: the table should stay
#: in the cache.
_PER_THRESHOLD, _PER_SCORE, _MIN_CELLS, _MAX_CELLS = 32, 1 / 64, 1 << 12, 1 << 18

_BLOCK = 1 << 17


class Unsettled(NamedTuple):
    """Negatives that share a cell with a threshold: where in memory (int64), their cell (int32),
    their score; all ``(D,)``."""

    position: Tensor
    cell: Tensor
    score: Tensor


class Thresholds:
    """Thresholds of all lists and how many of them the cells hold.

    Attributes:
        at: ``(P,)`` float32, by list, then rising.
        cell: ``(P,)`` int64, rising.
        count, through: ``(K + 1,)`` int32, thresholds in each cell, and up to and with it.
    """

    def __init__(self, cells: Cells, at: Tensor, lists: Tensor) -> None:
        self.at = at
        self.cell = cells.cell_of(at, lists)
        one = torch.ones((), dtype=torch.int32, device=at.device).expand(at.shape)
        self.count = one.new_zeros(cells.total + 1).index_add_(0, self.cell, one)
        self.through = self.count.cumsum(0, dtype=torch.int32)
        self._depth = int(self.count.index_select(0, self.cell).max()).bit_length()
        # at[k - 1] at place k, for every k that a step of the bisection can reach.
        self._padded = torch.nn.functional.pad(at, (1, 1 << self._depth), value=torch.inf)
        self._one_list = cells.num_lists == 1

    def at_or_below(self, near: Unsettled) -> Tensor:
        """Thresholds at or below each score ``(D,)``, those of all earlier lists included; int32.

        A bisection among the thresholds of the value's own cell. Those of the cells above are
        higher, so that only the end of the list has to be watched.
        """
        high = self.through.index_select(0, near.cell)
        found = high - self.count.index_select(0, near.cell)
        for power in reversed(range(self._depth)):
            tried = found + (1 << power)
            passed = near.score >= self._padded.index_select(0, tried)
            if not self._one_list:
                passed &= tried <= high
            found.add_(passed, alpha=1 << power)
        return found


class Cells:
    """The negatives of ``lists``, each in a cell.

    Args:
        lists: the scores.
        floor: ``(L,)`` float64, the lowest threshold of each list (the largest float32 if none):
            what lies below it shares a cell in which nothing is ever looked for.
        num_thresholds: how many thresholds there will be.

    Attributes:
        code: ``(N * C,)`` int32, the cell of each score in the order of memory; positives and
            ignored rows are in the last cell, ``total``.
        own: ``(P,)`` int64, where the positives are in it.
    """

    def __init__(self, lists: Lists, floor: Tensor, num_thresholds: int) -> None:
        num_lists = lists.num_lists
        wanted = _PER_THRESHOLD * num_thresholds, int(_PER_SCORE * lists.scores.numel())
        total = min(max(*wanted, _MIN_CELLS), _MAX_CELLS)
        self._shift = max(total // num_lists - 1, 7).bit_length()
        self.size = 1 << self._shift
        self.total = self.size * num_lists
        self.num_lists = num_lists
        # Rows of memory: a transposed matrix is read as it lies.
        self.transposed = lists.transposed
        self._values = lists.scores.t() if self.transposed else lists.scores
        outer, inner = lists.targets.rows, lists.targets.cols
        if self.transposed:
            outer, inner = inner, outer
        self.own = torch.add(inner, outer, alpha=self._values.shape[1])
        self._set_scale(floor, lists.high)
        self.code = self._encode(lists)
        self._settled = torch.bincount(self.code, minlength=self.total + 1)
        self._through_list = self._settled[:-1].view(num_lists, self.size).sum(1).cumsum(0)

    def _set_scale(self, floor: Tensor, high: float) -> None:
        rounding = torch.finfo(torch.float32).eps * floor.abs() + 1e-30
        width = torch.maximum((high - floor) / (self.size - 2), 4 * rounding)
        self._low = floor.sub(width, alpha=1.5).float()
        # Bounded, so that no product is 0 times infinity.
        self._scale = width.reciprocal().clamp(1e-38, 1e38).float()

    def _encode(self, lists: Lists) -> Tensor:
        axis = 0 if self.transposed else 1
        shape = [1, 1]
        shape[axis] = self.num_lists
        low, scale = self._low.view(shape), self._scale.view(shape)
        values, along = self._values, 1 - axis
        code = torch.empty(values.shape, dtype=torch.int32, device=values.device)
        # In blocks, whose intermediate results stay in a CPU's cache.
        block = values.numel() if values.is_cuda else _BLOCK
        block = max(block // max(values.shape[axis], 1), 1)
        for part, out in zip(values.split(block, along), code.split(block, along), strict=True):
            # Two roundings, never one fused: cell_of has to round alike.
            out.copy_((part - low).mul_(scale).clamp_(0, self.size - 1))
        if self.num_lists > 1:
            first = torch.arange(0, self.total, self.size, dtype=torch.int32, device=code.device)
            code += first.view(shape)
        if lists.targets.ignored.shape[0]:
            code.index_fill_(1 - axis, lists.targets.ignored, self.total)
        return code.view(-1).index_fill_(0, self.own, self.total)

    def cell_of(self, values: Tensor, lists: Tensor) -> Tensor:
        """Cells ``(P,)`` int64 of float32 values ``(P,)`` of the given lists."""
        cell = (values - spread(self._low, lists)).mul_(spread(self._scale, lists))
        cell = cell.clamp_(0, self.size - 1).long()
        return cell if self.num_lists == 1 else torch.add(cell, lists, alpha=self.size)

    def list_of(self, cell: Tensor) -> Tensor:
        """``(D,)`` int64, the list that each cell belongs to."""
        return (cell >> self._shift).long()

    def unsettled(self, cells: Tensor, except_in: Tensor | None = None) -> Unsettled:
        """The negatives in the given cells that are not among the others."""
        mark = torch.zeros(self.total + 1, dtype=torch.bool, device=cells.device)
        mark.index_fill_(0, cells, True)
        if except_in is not None:
            mark.index_fill_(0, except_in, False)
        position = positions_of(mark.index_select(0, self.code))
        if self._values.is_contiguous():
            score = self._values.view(-1).index_select(0, position)
        else:
            inner = self._values.shape[1]
            score = self._values[position // inner, position % inner]
        return Unsettled(position, self.code.index_select(0, position), score)

    def at_or_above(self, thresholds: Thresholds, below: Tensor) -> Tensor:
        """Negatives of its list at or above each threshold ``(P,)``; int64.

        Args:
            below: :meth:`Thresholds.at_or_below` of the unsettled negatives: those that share a
                cell with one of these thresholds, or of those of the calls before.
        """
        self._settled.index_fill_(0, thresholds.cell, 0)
        settled = self._settled.cumsum(0).index_select(0, thresholds.cell)
        near = torch.bincount(below, minlength=thresholds.at.shape[0] + 1).cumsum(0)[:-1]
        return (
            settled.add_(near)
            .neg_()
            .add_(spread(self._through_list, thresholds.cell >> self._shift))
        )
