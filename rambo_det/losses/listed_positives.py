"""The positives, sorted within the lists in which they are ranked."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .sort_keys import make_keys_ceil, scores_of, segment_offsets, segments_of


class ListedPositives:
    """T positives, sorted by segment, then by rising score; of equal ones the earlier is higher.

    Each segment is a list that is ranked.

    Args:
        keys: ``(T,)`` int64 keys of the positives, in the order in which equal ones rank.
        num_segments: G.
        margin: α >= 0, subtracted from the scores.

    Attributes:
        keys: ``(T,)`` int64, rising.
        segment: ``(T,)`` int64, rising.
        start: ``(T,)`` float64, score less margin: a negative at or above it ranks above.
        rank_pos: ``(T,)`` int64, r⁺, the rank among the positives of the list, 1 = highest.
        num_pos: ``(G,)`` int64, positives of each segment.
    """

    def __init__(self, keys: Tensor, num_segments: int, margin: float) -> None:
        self.keys, order = keys.flip(0).sort(stable=True)
        self._order = (order.shape[0] - 1) - order
        self.segment = segments_of(self.keys)
        self.start = scores_of(self.keys).double() - margin
        offsets = segment_offsets(self.keys, num_segments)
        self._first, ends = offsets[:-1], offsets[1:]
        self.num_pos = ends - self._first
        self.rank_pos = self.per_place(ends) - torch.arange(len(keys), device=keys.device)

    def threshold_keys(self, thresholds: Tensor) -> Tensor:
        """``(T,)`` int64 keys of ``(T,)`` float64 thresholds."""
        return make_keys_ceil(self.segment, thresholds)

    def per_place(self, values: Tensor) -> Tensor:
        """``(T,)`` values of each place's segment, from ``(G,)``."""
        return values.index_select(0, self.segment)

    def lowest(self) -> Tensor:
        """``(G,)`` float32, the lowest start of each segment; infinite where it has none."""
        starts = pad(self.start.float(), (0, 1))[self._first]
        return starts.masked_fill_(self.num_pos == 0, torch.inf)

    def sum_by_segment(self, values: Tensor) -> Tensor:
        """``(G,)`` float64: sums over each segment of ``(T,)`` values."""
        return values.new_zeros(len(self.num_pos)).index_add_(0, self.segment, values)

    def cumsum(self, values: Tensor) -> Tensor:
        """``(T,)``: sums of ``(T,)`` values over each segment, from its lowest place up to each."""
        sums = pad(values.cumsum(0), (1, 0))
        return sums[1:] - self.per_place(sums.index_select(0, self._first))

    def argsort(self, values: Tensor) -> Tensor:
        """``(T,)`` int64: the stable order by segment, then by rising value."""
        order = values.argsort(stable=True)
        by_segment = self.segment.index_select(0, order).argsort(stable=True)
        return order.index_select(0, by_segment)

    def unsort(self, values: Tensor) -> Tensor:
        """``(T,)`` values of the places, in the order of the keys."""
        return torch.empty_like(values).index_copy_(0, self._order, values)
