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

from .blocks import Block
from .keys import spread
from .targets import positions_of

#: Cells of a block for each threshold, for each score, and the bounds of their number: the table
#: should stay in the cache.
_PER_THRESHOLD, _PER_SCORE, _MIN_CELLS, _MAX_CELLS = (
    32,
    1 / 64,
    1 << 12,
    1 << int(__import__("os").environ.get("MC", 18)),
)

#: Scores that are encoded in one go on a CPU: their intermediate results stay in its cache.
_CHUNK = 1 << 17


class Unsettled(NamedTuple):
    """Negatives that share a cell with a threshold: where among all blocks' scores (int64), their
    cell (int32), their score; all ``(D,)``."""

    position: Tensor
    cell: Tensor
    score: Tensor


class Thresholds:
    """Thresholds of all lists and how many of them the cells hold.

    Attributes:
        at: ``(P,)`` float32, by list, then rising.
        lists: ``(P,)`` int64.
        cell: ``(P,)`` int64, rising.
        count, through: ``(K + 1,)`` int32, thresholds in each cell, and up to and with it.
    """

    def __init__(self, cells: Cells, at: Tensor, lists: Tensor) -> None:
        self.at, self.lists = at, lists
        self.cell = cells.cell_of(at, lists)
        self.count = torch.bincount(self.cell, minlength=cells.total + 1).int()
        self.through = self.count.cumsum(0, dtype=torch.int32)
        self._depth = int(self.count.max()).bit_length()
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
    """The negatives of some blocks and of a memory, each in a cell.

    Args:
        blocks: one or two, whose lists are numbered through; the second has a single list.
        floor: ``(L,)`` float64, the lowest threshold of each list: what lies below it shares a
            cell in which nothing is ever looked for.
        high: the highest score.
        num_thresholds: how many thresholds each block has.
        memory: scores ``(M,)`` float32 of remembered negatives, and their lists ``(M,)`` int64.

    Attributes:
        code: ``(S + M,)`` int32, the cell of each score of all blocks, as they lie in memory, and
            of the remembered ones; positives and ignored rows are in the last cell, ``total``.
        own: ``(P,)`` int64 for each block, where this process's positives are in it.
        ranges: where each block's scores are in ``code``, and its lists' cells in a table.
    """

    def __init__(
        self,
        blocks: list[Block],
        floor: Tensor,
        high: float,
        num_thresholds: int,
        memory: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.num_lists = floor.shape[0]
        sizes: list[int] = []
        starts: list[int] = []
        self.ranges: list[tuple[slice, slice]] = []
        scores = self.total = 0
        for block in blocks:
            num, count = len(block.lists), block.values.numel()
            wanted = max(_PER_THRESHOLD * num_thresholds, int(_PER_SCORE * count), _MIN_CELLS)
            size = 1 << max(min(wanted, _MAX_CELLS) // num - 1, 7).bit_length()
            sizes += [size] * num
            starts += range(self.total, self.total + num * size, size)
            self.ranges.append(
                (slice(scores, scores + count), slice(self.total, starts[-1] + size))
            )
            scores, self.total = scores + count, starts[-1] + size
        self._shift = sizes[0].bit_length() - 1
        self._ends = torch.tensor(starts[1:] + [self.total], device=floor.device)
        self._start = torch.tensor(starts, device=floor.device)
        self._set_scale(floor, high, torch.tensor(sizes, dtype=torch.float64, device=floor.device))
        flat = [block.values.reshape(-1) for block in blocks]
        if memory is not None:
            flat.append(memory[0])
        self._values = flat[0] if len(flat) == 1 else torch.cat(flat)
        self.own = [
            block.own + part.start for block, (part, _) in zip(blocks, self.ranges, strict=True)
        ]
        self.code = torch.empty(self._values.shape, dtype=torch.int32, device=floor.device)
        for block, (part, _) in zip(blocks, self.ranges, strict=True):
            self._encode(block, self.code[part].view(block.values.shape), sizes[block.lists[0]])
        for own in self.own:
            self.code.index_fill_(0, own, self.total)
        if memory is not None:
            self.code[scores:] = self.cell_of(*memory)
        self._settled = torch.bincount(self.code, minlength=self.total + 1)
        self._through_list = self._settled.cumsum(0).index_select(0, self._ends - 1)

    def _set_scale(self, floor: Tensor, high: float, size: Tensor) -> None:
        rounding = torch.finfo(torch.float32).eps * floor.abs() + 1e-30
        width = torch.maximum((high - floor) / (size - 2), 4 * rounding)
        self._low = floor.sub(width, alpha=1.5).float()
        # Bounded, so that no product is 0 times infinity.
        self._scale = width.reciprocal().clamp(1e-38, 1e38).float()
        self._top = (size - 1).float()

    def _encode(self, block: Block, code: Tensor, size: int) -> None:
        shape, values, along = [1, 1], block.values, 0
        lists = slice(block.lists.start, block.lists.stop)
        if block.list_axis is not None:
            shape[block.list_axis], along = -1, 1 - block.list_axis
        low, scale = self._low[lists].view(shape), self._scale[lists].view(shape)
        start = self._start[lists].int().view(shape)
        chunk = values.numel() if values.is_cuda else _CHUNK
        chunk = max(chunk // max(values.shape[1 - along], 1), 1)
        for part, out in zip(values.split(chunk, along), code.split(chunk, along), strict=True):
            # Two roundings, never one fused: cell_of has to round alike.
            out.copy_((part - low).mul_(scale).clamp_(0, size - 1)).add_(start)
        if block.ignored.shape[0]:
            code.index_fill_(block.row_axis, block.ignored, self.total)

    def cell_of(self, values: Tensor, lists: Tensor) -> Tensor:
        """Cells ``(P,)`` int64 of float32 values ``(P,)`` of the given lists."""
        cell = (values - spread(self._low, lists)).mul_(spread(self._scale, lists)).clamp_(min=0)
        cell = torch.minimum(cell, spread(self._top, lists)).long()
        return cell if self.num_lists == 1 else cell.add_(spread(self._start, lists))

    def list_of(self, cell: Tensor) -> Tensor:
        """``(D,)`` int64, the list that each cell belongs to."""
        # All lists but the last have cells as many as the first, and those of the last are last.
        return (cell >> self._shift).clamp_(max=self.num_lists - 1).long()

    def unsettled(self, cells: Tensor, except_in: Tensor | None = None) -> Unsettled:
        """The negatives in the given cells that are not among the others."""
        mark = torch.zeros(self.total + 1, dtype=torch.bool, device=cells.device)
        mark.index_fill_(0, cells, True)
        if except_in is not None:
            mark.index_fill_(0, except_in, False)
        position = positions_of(mark.index_select(0, self.code))
        return Unsettled(
            position,
            self.code.index_select(0, position),
            self._values.index_select(0, position),
        )

    def at_or_above(self, thresholds: Thresholds, below: Tensor) -> Tensor:
        """Negatives of its list at or above each threshold ``(P,)``; int64.

        Args:
            below: :meth:`Thresholds.at_or_below` of the unsettled negatives: those that share a
                cell with one of these thresholds, or of those of the calls before.
        """
        self._settled.index_fill_(0, thresholds.cell, 0)
        settled = self._settled.cumsum(0).index_select(0, thresholds.cell)
        near = torch.bincount(below, minlength=thresholds.at.shape[0] + 1).cumsum(0)[:-1]
        return settled.add_(near).neg_().add_(spread(self._through_list, thresholds.lists))
