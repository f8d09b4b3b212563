"""How hard negatives are pushed down between the thresholds of positives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pushes:
    """How hard a negative is pushed down, by the highest edge at or below it.

    Each positive has two edges, its threshold and the moved one. It pushes a negative between them
    by ``weight / divisor``.

    Attributes:
        divisor: ``(T,)`` float64, see :class:`.lambda_rules.LambdaRule`.
        weight: ``(T,)`` float64, of the positive's list in the loss.
        one_per_segment: whether both are the same for all positives of a segment. Then whole
            numbers are summed and divided once: equal to the blackbox rule to the last digit.
    """

    divisor: Tensor
    weight: Tensor
    one_per_segment: bool

    def at(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """How many positives push, int64, and what they push in all, float64, ``(2 T,)`` both.

        Args:
            order: ``(2 T,)``, that of the sorted edges: below T a threshold, from T on a moved one.
        """
        is_moved = order >= self.divisor.shape[0]
        positive = order - is_moved * self.divisor.shape[0]
        sign = is_moved * -2 + 1
        num_pushing = sign.cumsum(0)
        if self.one_per_segment:
            pushed = num_pushing / self.divisor.index_select(0, positive)
            return num_pushing, pushed * self.weight.index_select(0, positive)
        each = (self.weight / self.divisor).index_select(0, positive)
        # No residue of the running sum where nothing pushes.
        return num_pushing, (sign * each).cumsum(0).masked_fill_(num_pushing == 0, 0)
