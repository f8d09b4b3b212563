"""Positives whose boxes fit worse, as errors of the positives below them that fit better."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from .binning import cpu
from .listed_positives import ListedPositives

#: Pairs that are looked at in one go where C++ does not compare them: bounds the memory for them.
_PAIRS = 1 << 24


class WorsePlaced:
    """The pairs of positives i and k of one list with ``IoU_k < IoU_i - gap``.

    All pairs of a list are compared: of P positives, not of N scores. An IoU that is NaN, as of a
    positive that was remembered without one, is of no such pair.

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
        ious, start = self._ious, self._lists.start
        values = torch.ones_like(moved) if values is None else values
        if order is not None:
            ious, start, moved, values = (x[order] for x in (ious, start, moved, values))
        num_overtaken = torch.zeros_like(self._lists.ends)
        pushed = torch.zeros_like(values)
        native = cpu.library() if ious.device.type == "cpu" else None
        compare = _compare if native is None else functools.partial(_compare_natively, native)
        compare(
            self._lists.ends, ious, ious - self._gap, start, moved, values, num_overtaken, pushed
        )
        if order is None:
            return num_overtaken, pushed
        unsorted = torch.empty_like(num_overtaken).index_copy_(0, order, num_overtaken)
        return unsorted, torch.empty_like(pushed).index_copy_(0, order, pushed)


def _compare_natively(native: ctypes.CDLL, ends: Tensor, *columns: Tensor) -> None:
    native.rambo_overtaken(
        ends.shape[0], ends.data_ptr(), *(column.data_ptr() for column in columns)
    )


def _compare(
    ends: Tensor, ious: Tensor, bars: Tensor, start: Tensor, moved: Tensor, values: Tensor,
    num_overtaken: Tensor, pushed: Tensor,
) -> None:  # fmt: skip
    """In blocks of i with all k from the first i on: the sizes of the lists are on the device."""
    number = ends.shape[0]
    places = torch.arange(number, device=ends.device)
    for first in range(0, number, max(_PAIRS // number, 1)):
        i = slice(first, first + max(_PAIRS // number, 1))
        pairs = (places[first:] > places[i, None]) & (places[first:] < ends[i, None])
        pairs &= (ious[first:] < bars[i, None]) & (start[first:] < moved[i, None])
        num_overtaken[i] = pairs.sum(dim=1)
        pushed[first:] += values[i] @ pairs.double()
