"""The positives, sorted within the lists in which they are ranked."""

from __future__ import annotations

import torch
from torch import Tensor

from .sort_keys import (
    EMPTY_KEY,
    count_at_or_above,
    failed_ious_of,
    make_keys_ceil,
    scores_of,
    segment_offsets,
    segments_of,
    sort,
)


class ListedPositives:
    """T places in lists, sorted by list, then by rising score; of equal ones the earlier is higher.

    A segment has J lists, one for each IoU threshold, numbered ``segment * J + j``. A positive that
    fails threshold j is no positive of list j, but a negative: it is *below IoU* there. T is J
    times the number of positives. Places that hold no positive (below IoU, or an empty place of the
    memory) belong to one more list, the last, which counts for nothing.

    Args:
        keys: ``(I,)`` int64 keys of the positives, in the order in which equal ones rank.
        num_segments: G.
        num_iou_thresholds: J; 0 stands for one list in which all are positives.
        margin: α >= 0, subtracted from the scores.

    Attributes:
        num_lists: L = G * J, the last list not counted.
        one_per_segment: whether each segment has one list.
        list, segment: ``(T,)`` int64, sorted.
        start: ``(T,)`` float64, score less margin: a negative at or above it ranks above.
        start_keys: ``(T,)`` int64, :meth:`threshold_keys` of it.
        rank_pos: ``(T,)`` int64, r⁺, the rank among the positives of the list, 1 = highest.
        num_pos: ``(L + 1,)`` int64, positives of each list.
        below_iou_keys: ``(J * I,)`` int64, list and score of those below IoU, ``EMPTY_KEY`` for the
            others; None without IoU thresholds.
    """

    def __init__(
        self, keys: Tensor, num_segments: int, num_iou_thresholds: int, margin: float
    ) -> None:
        levels = max(num_iou_thresholds, 1)
        self._shape = (levels, keys.shape[0])
        self.num_lists = num_segments * levels
        self.one_per_segment = levels == 1
        self.below_iou_keys: Tensor | None = None
        if num_iou_thresholds:
            keys = self._one_key_per_list(keys, levels)
        keys, order = keys.flip(0).sort(stable=True)
        self._order = (order.shape[0] - 1) - order  # the place of each before it was sorted
        self.list = (keys >> 32).clamp_(max=self.num_lists)
        self.segment = self.list if levels == 1 else self.list // levels
        self.start = scores_of(keys).double() - margin
        self.start_keys = self.threshold_keys(self.start)
        offsets = segment_offsets(keys, self.num_lists)
        ends = torch.cat([offsets[1:], offsets.new_full((1,), keys.shape[0])])
        self.num_pos = ends - offsets
        self._first_of_segment = offsets[:-1:levels]
        places = torch.arange(keys.shape[0], device=keys.device)
        self.rank_pos = ends.index_select(0, self.list) - places

    def _one_key_per_list(self, keys: Tensor, levels: int) -> Tensor:
        level = torch.arange(levels, device=keys.device)[:, None]
        in_lists = ((segments_of(keys) * levels + level) << 32) + (keys & 0xFFFFFFFF)
        empty, below_iou = keys == EMPTY_KEY, level >= levels - failed_ious_of(keys)
        self.below_iou_keys = in_lists.masked_fill(~below_iou | empty, EMPTY_KEY).flatten()
        self._sorted_below_iou_keys = sort(self.below_iou_keys)
        return in_lists.masked_fill_(below_iou | empty, EMPTY_KEY).flatten()

    def threshold_keys(self, thresholds: Tensor) -> Tensor:
        """``(T,)`` int64 keys, by segment, of ``(T,)`` float64 thresholds."""
        return make_keys_ceil(self.segment, thresholds)

    def per_place(self, values: Tensor) -> Tensor:
        """``(T,)`` values of each place's list, from ``(L + 1,)``."""
        return values.index_select(0, self.list)

    def lowest(self) -> Tensor:
        """``(G,)`` float32, the lowest start of each segment; infinite where it has none."""
        # The list of the lowest IoU threshold has all positives of the segment.
        starts = torch.nn.functional.pad(self.start.float(), (0, 1))
        none = self.num_pos[: -1 : self._shape[0]] == 0
        return starts[self._first_of_segment].masked_fill_(none, torch.inf)

    def sum_by_list(self, values: Tensor) -> Tensor:
        """``(L + 1,)`` float64: sums over each list of ``(T,)`` values."""
        return values.new_zeros(self.num_lists + 1).index_add_(0, self.list, values)

    def argsort(self, values: Tensor) -> Tensor:
        """``(T,)`` int64: the stable order by list, then by rising value."""
        order = values.argsort(stable=True)
        by_list = self.list.index_select(0, order).argsort(stable=True)
        return order.index_select(0, by_list)

    def count_below_iou(self, values: Tensor) -> Tensor | int:
        """``(T,)`` int64: those below IoU in each place's list at or above float64 thresholds."""
        if self.below_iou_keys is None:
            return 0
        edges = make_keys_ceil(self.list, values)
        return count_at_or_above(self._sorted_below_iou_keys, edges, self.num_lists)

    def unsort(self, values: Tensor) -> Tensor:
        """``(J, I)``, by IoU threshold and positive, from ``(T,)`` sorted values."""
        return torch.empty_like(values).index_copy_(0, self._order, values).view(self._shape)
