"""What the counting passes are asked about: the thresholds of groups of scores."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Thresholds(NamedTuple):
    """Thresholds of G groups of scores.

    Where they meet the ``(N, C)`` scores of a batch, group c < C is that of column c and group C
    that of all columns.

    Attributes:
        at: ``(T,)`` float32, by group, then rising.
        bounds: ``(G + 1,)`` int64: those of group g are ``at[bounds[g]:bounds[g + 1]]``.
        through: ``(T + G,)`` float64, rising from 0 in each group: the weights of its lowest 0, 1,
            2, … thresholds summed up; None: all weigh 1.
    """

    at: Tensor
    bounds: Tensor
    through: Tensor | None = None

    def floor(self) -> Tensor:
        """``(G,)`` float32, the lowest threshold of each group; infinite where it has none."""
        if self.at.shape[0] == 0:
            return self.at.new_full((self.bounds.shape[0] - 1,), torch.inf)
        first = self.bounds[:-1]
        lowest = self.at.index_select(0, first.clamp(max=self.at.shape[0] - 1))
        return lowest.masked_fill_(first == self.bounds[1:], torch.inf)

    def base(self) -> Tensor:
        """``(G - 1,)`` float32: of each group but the last its :meth:`floor`, where it has none the
        lowest of any group, 0 if no group has one."""
        floor = self.floor()
        lowest = floor.min()
        lowest = torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest))
        return torch.where(floor[:-1].isfinite(), floor[:-1], lowest)


class Ranked(NamedTuple):
    """Positives by list, then by rising score, the last one first in a tie.

    Attributes:
        order: ``(P,)`` int64, where each was before.
        lists: ``(P,)`` int64.
        bounds: ``(L + 1,)`` int64: those of list l are at ``bounds[l]:bounds[l + 1]``.
        rank: ``(P,)`` int64, rank among the positives of the list, 1 = highest.
        start: ``(P,)`` float64, score less margin.
        at: ``(P,)`` float32, the smallest number that is not below it: b >= at is b >= start.
    """

    order: Tensor
    lists: Tensor
    bounds: Tensor
    rank: Tensor
    start: Tensor
    at: Tensor


class Counting(Protocol):
    """The passes over all scores, and the sorting of positives.

    Scores, their classes and a gradient are on one device; all that has an entry for each positive,
    threshold or group is on the CPU but the rows, columns and keys of :meth:`find`.

    A negative of a batch is a score of a row whose class is >= 0 and not the score's column.
    """

    def count(
        self, scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds
    ) -> Tensor:
        """``(T,)`` int64: negatives of its group at or above each threshold.

        Args:
            scores: ``(N, C)`` float32, contiguous or strided.
            gt_classes: ``(N,)`` int64, contiguous.
            high: at least the highest score: a hint that saves time.
            thresholds: C + 1 groups.
        """

    def count_listed(self, values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
        """The same of ``(M,)`` float32 values, each of the group that ``(M,)`` int32 names."""

    def write(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        high: float,
        before: Thresholds,
        after: Thresholds,
        divisor: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the negatives, and :meth:`count` of the thresholds ``after``.

        With ``W(b)`` the weights of a group's thresholds at or below ``b``, a negative b has
        ``Σ over its two groups of (W_before(b) - W_after(b)) / divisor · weight``, in float64.

        Args:
            before, after: C + 1 groups each, of the same bounds; no group's floor and, without
                weights, no threshold is higher before than after.
            divisor, weight: ``(C + 1,)`` float64.
            dtype: of the gradient, float32 or float64.

        Returns:
            ``(N, C)``, 0 for all that is no negative, and ``(T of after,)`` int64.
        """

    def find(self, scores: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and keys (:mod:`..keys`) ``(P,)`` int64 of the positives, by rising row.

        Args:
            scores, gt_classes: as those of :meth:`count`; C is background, below 0 is ignored.
        """

    def rank(self, keys: Tensor, num_lists: int, margin: float) -> Ranked:
        """Sorts positives ``(P,)``, ``list << 32 | order_code(score)``."""

    def move(self, ranked: Ranked, lambda_: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Order ``(P,)`` int64 within the lists, and thresholds in it ``(P,)`` float32, of the
        positives after the step ``start + λ · slope``, with λ ``(L,)`` and slope ``(P,)`` float64.

        Ties go to the one that led before the step."""

    def argsort(self, values: Tensor, bounds: Tensor) -> Tensor:
        """``(T,)`` int64, the stable order of ``(T,)`` float64 values by rising value within
        each segment ``bounds[g]:bounds[g + 1]``."""

    def highest(
        self, scores: Tensor, gt_classes: Tensor, thresholds: Thresholds | None, size: int
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(S,)`` float32 and columns ``(S,)`` int32 of the ``size`` negatives that lie
        highest above the :meth:`Thresholds.base` of their column, above 0 without thresholds; of
        all negatives where there are fewer."""
