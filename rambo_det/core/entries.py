"""Positives as they are ranked: in one list for each IoU threshold, or in a single one."""

from __future__ import annotations

import torch
from torch import Tensor

from .counting import Ranked
from .keys import decode, in_list, list_of, missed_of


class Entries:
    """Each of I positives in the J lists of its group, list ``group · J + j`` for threshold j.

    Args:
        keys: ``(I,)`` int64 (:mod:`.keys`), their list being the group.
        levels: J, or 0: a single list, in which all are positive.

    Attributes:
        lists: ``(J · I,)`` int64, of each entry, threshold by threshold.
        positive: ``(P,)`` int64, the entries whose positive reaches the threshold; None: all.
        keys: ``(P,)`` int64, ``list << 32 | order_code(score)`` of these.
        demoted: ``(D,)`` int64, the others, which are negatives of their list.
        demoted_scores, demoted_lists: ``(D,)`` float32 and int32.
    """

    def __init__(self, keys: Tensor, levels: int) -> None:
        self.levels = levels
        if levels == 0:
            self.lists, self.positive = list_of(keys), None
            self.keys = in_list(keys, self.lists)
            return
        level = torch.arange(levels, device=keys.device)[:, None]
        self.lists = (list_of(keys) * levels + level).view(-1)
        reaches = (level < levels - missed_of(keys)).view(-1)
        of_lists = in_list(keys.repeat(levels), self.lists)
        self.positive = reaches.nonzero().view(-1)
        self.keys = of_lists.index_select(0, self.positive)
        self.demoted = (~reaches).nonzero().view(-1)
        self.demoted_scores = decode(of_lists.index_select(0, self.demoted))
        self.demoted_lists = self.lists.index_select(0, self.demoted).int()

    def grid(self, ranked: Ranked, values: Tensor, demoted: Tensor | None = None) -> Tensor:
        """``(J, I)`` from ``(P,)`` values of ranked positives and ``(D,)`` of the others, or 0."""
        found = torch.empty_like(values).index_copy_(0, ranked.order, values)
        if self.positive is not None:
            spread = values.new_zeros(self.lists.shape[0])
            found = spread.index_copy_(0, self.positive, found)
            if demoted is not None:
                found.index_copy_(0, self.demoted, demoted)
        return found.view(max(self.levels, 1), -1)
