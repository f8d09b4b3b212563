"""What a batch's scores are: which of them are positive."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .counting import counting_for


class Targets(NamedTuple):
    """Where the positives are.

    Attributes:
        rows, cols: ``(P,)`` int64, by rising row.
    """

    rows: Tensor
    cols: Tensor

    @staticmethod
    def find(gt_classes: Tensor, num_classes: int) -> Targets:
        """From ``(N,)`` int64, contiguous; ``num_classes`` is background, below 0 is ignored."""
        return Targets(*counting_for(gt_classes.device).find(gt_classes, num_classes))
