"""The positives, sorted within the segments that are ranked."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .sort_keys import key_scores, key_segments, segment_offsets


class ListedPositives:
    """The T positives of all segments, sorted by segment, then by rising score.

    A *segment* is one ranked list. A *place* is an index in the sorted order.

    Args:
        keys: ``(T,)`` int64 keys of the positives. Among equal keys, the first ranks highest.
        num_segments: G.
        margin: α >= 0, subtracted from the scores.

    Attributes:
        keys: ``(T,)`` int64, rising.
        segment: ``(T,)`` int64, rising.
        threshold: ``(T,)`` float64, score minus margin. A negative ranks above the positive if it
            is at or above this threshold.
        rank_pos: ``(T,)`` int64, r⁺, the rank among the positives of the segment, 1 = highest.
        num_pos: ``(G,)`` int64, number of positives in each segment.
    """

    def __init__(self, keys: Tensor, num_segments: int, margin: float) -> None:
        self.keys, order = keys.flip(0).sort(stable=True)
        self._order = (order.shape[0] - 1) - order
        self.segment = key_segments(self.keys)
        self.threshold = key_scores(self.keys).double() - margin
        offsets = segment_offsets(self.keys, num_segments)
        self._first, ends = offsets[:-1], offsets[1:]
        self.num_pos = ends - self._first
        self.rank_pos = self.gather_by_segment(ends) - torch.arange(len(keys), device=keys.device)

    def gather_by_segment(self, values: Tensor) -> Tensor:
        """Returns ``(T,)``: for each place the value of its segment, from ``(G,)`` values."""
        return values.index_select(0, self.segment)

    def lowest_thresholds(self) -> Tensor:
        """Returns ``(G,)`` float32: the lowest threshold of each segment; infinite if empty."""
        lowest = pad(self.threshold.float(), (0, 1))[self._first]
        return lowest.masked_fill_(self.num_pos == 0, torch.inf)

    def cumsum(self, values: Tensor) -> Tensor:
        """Returns ``(T,)``: the cumulative sum of ``(T,)`` values in each segment, lowest first."""
        sums = pad(values.cumsum(0), (1, 0))
        return sums[1:] - self.gather_by_segment(sums.index_select(0, self._first))

    def argsort(self, values: Tensor) -> Tensor:
        """Returns ``(T,)`` int64: the stable order by segment, then by rising value."""
        order = values.argsort(stable=True)
        by_segment = self.segment.index_select(0, order).argsort(stable=True)
        return order.index_select(0, by_segment)

    def unsort(self, values: Tensor) -> Tensor:
        """Returns ``(T,)`` values of the places, in the order of the argument ``keys``."""
        return torch.empty_like(values).index_copy_(0, self._order, values)
