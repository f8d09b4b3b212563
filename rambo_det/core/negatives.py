"""All that positives are compared with, and the passes over it."""

from __future__ import annotations

import torch
from torch import Tensor

from .counting import Counting, Thresholds
from .counting.plain import at_or_below, through
from .entries import Entries
from .memory import Stored
from .processes import Processes


class Compared:
    """The thresholds of all lists, and of all groups: those of a group's lists merged.

    Attributes:
        lists: by list.
        groups: by group.
        merged: ``(P,)`` int64, where each of ``groups.at`` is in ``lists.at``; None: they are one.
    """

    def __init__(self, lists: Thresholds, groups: Thresholds, merged: Tensor | None) -> None:
        self.lists, self.groups, self.merged = lists, groups, merged

    def weighted(self, weights: Tensor) -> Compared:
        """The same with ``(P,)`` float64 weights of the thresholds, given by list."""
        lists = _weighted(self.lists, weights)
        if self.merged is None:
            return Compared(lists, lists, None)
        groups = _weighted(self.groups, weights.index_select(0, self.merged))
        return Compared(lists, groups, self.merged)


def _weighted(thresholds: Thresholds, weights: Tensor) -> Thresholds:
    at, bounds, _ = thresholds
    sums = torch.nn.functional.pad(weights.cumsum(0), (1, 0))
    num = bounds.diff() + 1
    group = torch.repeat_interleave(num)
    place = torch.arange(group.shape[0], device=group.device) - group
    through = sums.index_select(0, place) - sums.index_select(0, bounds[:-1])[group]
    return Thresholds(at, bounds, through)


class Negatives:
    """The negatives of a batch and of a memory, and the positives that miss a threshold.

    Args:
        counting: the passes, for the device of the scores.
        scores, gt_classes, high, stored, processes: as those of :func:`.lists.rank_lists`.
        entries: the positives in their lists.
        bounds: ``(L + 1,)`` int64, where the positives of each list begin and end, once sorted.
    """

    def __init__(
        self,
        counting: Counting,
        scores: Tensor,
        gt_classes: Tensor,
        high: float,
        stored: Stored | None,
        entries: Entries,
        bounds: Tensor,
        processes: Processes,
    ) -> None:
        self._batch, self._stored = (scores, gt_classes, high), stored
        self._entries, self._bounds, self._processes = entries, bounds, processes
        self._counting = counting

    def thresholds(self, at: Tensor) -> Compared:
        """From ``(P,)`` float32, by list, then rising."""
        lists = Thresholds(at, self._bounds)
        if self._entries.levels == 0:
            return Compared(lists, lists, None)
        bounds = self._bounds[:: self._entries.levels].contiguous()
        merged = self._counting.argsort(at.double(), bounds)
        return Compared(lists, Thresholds(at.index_select(0, merged), bounds), merged)

    def moved(self, compared: Compared, at: Tensor) -> Compared:
        """The same where the move is one and the same for all, so that their order stays."""
        lists = Thresholds(at, compared.lists.bounds)
        if compared.merged is None:
            return Compared(lists, lists, None)
        groups = Thresholds(at.index_select(0, compared.merged), compared.groups.bounds)
        return Compared(lists, groups, compared.merged)

    def count(self, compared: Compared) -> Tensor:
        """``(P,)`` int64: negatives of its list at or above each threshold; a collective."""
        above = self._counting.count(*self._batch, compared.groups)
        return self.complete(above, compared)

    def count_both(self, was: Compared, now: Compared) -> tuple[Tensor, Tensor]:
        """:meth:`count` of ``was`` and of what it :meth:`moved` to, by one pass; one collective."""
        places = torch.repeat_interleave(was.groups.bounds.diff()).repeat(2)
        order = places.argsort(stable=True)
        at, bounds = torch.cat([was.groups.at, now.groups.at]), was.groups.bounds * 2
        rising = self._counting.argsort(at.index_select(0, order).double(), bounds)
        order = order.index_select(0, rising)
        both = Thresholds(at.index_select(0, order), bounds)
        found = self._everywhere(self._counting.count(*self._batch, both), both)
        above = torch.empty_like(found).index_copy_(0, order, found)
        first, second = above.chunk(2)
        return self._by_list(first, was), self._by_list(second, now)

    def write(
        self,
        before: Compared,
        after: Compared,
        divisor: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """The gradient ``(N, C)`` of the batch's negatives and, once it is :meth:`complete`,
        :meth:`count` of ``after``.

        Args:
            before, after: both with weights or both without.
            divisor, weight: ``(G,)`` float64, of each group.
        """
        return self._counting.write(
            *self._batch, before.groups, after.groups, divisor, weight, dtype
        )

    def demotion(self, before: Compared, after: Compared) -> Tensor | None:
        """``(D,)``, of each positive that misses a threshold those that pass it: how many, int64;
        where they have weights the sum of these, float64. None: none misses one."""
        if before.merged is None:
            return None
        scores, lists = self._entries.demoted_scores, self._entries.demoted_lists
        was, now = (
            through(at_or_below(scores, lists, part.lists), lists, part.lists)
            for part in (before, after)
        )
        return was - now if before.lists.through is not None else (was - now).long()

    @property
    def demoted_lists(self) -> Tensor:
        """``(D,)`` int32, the lists of :meth:`demotion`."""
        return self._entries.demoted_lists

    def complete(self, above: Tensor, compared: Compared) -> Tensor:
        """:meth:`count` from what is counted in the batch of this process; a collective."""
        return self._by_list(self._everywhere(above, compared.groups), compared)

    def _everywhere(self, above: Tensor, groups: Thresholds) -> Tensor:
        if self._stored is not None:
            above += self._counting.count_listed(*self._stored.negatives(), groups)
        return self._processes.sum(above)

    def _by_list(self, above: Tensor, compared: Compared) -> Tensor:
        if compared.merged is None:
            return above
        above = torch.empty_like(above).index_copy_(0, compared.merged, above)
        scores, lists = self._entries.demoted_scores, self._entries.demoted_lists
        return above.add_(self._counting.count_listed(scores, lists, compared.lists))
