"""Positives whose boxes fit worse, as errors of the positives below them that fit better."""

from __future__ import annotations

import torch
from torch import Tensor

from .listed_positives import ListedPositives

#: Pairs that are looked at in one go: bounds the memory that they take.
_PAIRS = 1 << 22
#: Rows of a block on a CPU, where it ends with the list of its last row.
_ROWS = 64


class WorsePlaced:
    """The pairs of positives i and k of one list with ``IoU_k < IoU_i - gap``.

    All pairs of a list are compared, in blocks. An IoU that is NaN, as of a positive that was
    remembered without one, is of no such pair.

    Args:
        lists: the T positives.
        ious: ``(T,)`` float32, in the order in which the lists were given their keys.
        gap: in ``[0, 1)``.
    """

    def __init__(self, lists: ListedPositives, ious: Tensor, gap: float) -> None:
        self._lists, self._ious = lists, ious.index_select(0, lists.order).double()
        self._gap = gap

    def num_above(self) -> Tensor:
        """``(T,)`` int64: positives above each that are worse placed."""
        return self.overtaken(torch.full_like(self._ious, torch.inf))[0]

    def overtaken(
        self, moved: Tensor, order: Tensor | None = None, values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pairs in which k is above i in ``order``, and i, moved, passes k where k starts.

        Args:
            moved: ``(T,)`` float64, where each positive moves.
            order: ``(T,)`` int64, by segment; None: as they are sorted.
            values: ``(T,)`` float64; None: 1 each.

        Returns:
            ``(T,)`` int64, the pairs in which each positive is i, and ``(T,)`` float64, the sum of
            the values of i over those in which it is k.
        """
        columns = [self._ious, self._lists.start, moved]
        columns.append(torch.ones_like(moved) if values is None else values)
        if order is not None:
            columns = [column.index_select(0, order) for column in columns]
        ious, start, moved, values = columns
        ends, number = self._lists.ends, len(ious)
        places = torch.arange(number, device=ious.device)
        num_overtaken, pushed = torch.zeros_like(places), torch.zeros_like(values)
        on_cpu = ious.device.type == "cpu"
        size = _ROWS if on_cpu else max(_PAIRS // number, 1)
        for first in range(0, number, size):
            i = slice(first, min(first + size, number))
            # Elsewhere it would have to be waited for.
            k = slice(first, int(ends[i.stop - 1]) if on_cpu else number)
            pairs = ious[k] < (ious[i] - self._gap)[:, None]
            pairs &= start[k] < moved[i, None]
            pairs &= (places[k] > places[i, None]) & (places[k] < ends[i, None])
            num_overtaken[i] = pairs.sum(dim=1)
            pushed[k] += values[i] @ pairs.double()
        if order is None:
            return num_overtaken, pushed
        unsorted = torch.empty_like(num_overtaken).index_copy_(0, order, num_overtaken)
        return unsorted, torch.empty_like(pushed).index_copy_(0, order, pushed)
