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


class Counting(Protocol):
    """The passes over all scores. A negative of a batch is a score of a row whose class is >= 0
    and not the score's column; those of infinite or NaN value are counted anyhow."""

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
            before, after: C + 1 groups each; no group's floor is higher before than after.
            divisor, weight: ``(C + 1,)`` float64.
            dtype: of the gradient, float32 or float64.

        Returns:
            ``(N, C)``, 0 for all that is no negative, and ``(T of after,)`` int64.
        """

    def argsort(self, values: Tensor, bounds: Tensor) -> Tensor:
        """``(T,)`` int64, the stable order of ``(T,)`` float64 values by rising value within
        each segment ``bounds[g]:bounds[g + 1]``."""

    def highest(
        self, scores: Tensor, gt_classes: Tensor, floor: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(S,)`` float32 and columns ``(S,)`` int32 of the ``size`` negatives that lie
        highest above the ``(C,)`` floor of their column; of all where there are fewer."""
