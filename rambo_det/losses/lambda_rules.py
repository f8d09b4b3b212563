"""How λ is chosen: how far each positive moves up before it is ranked again, and how hard it
pushes the negatives that it overtakes.

A positive whose rank changes by ``c`` when it moves has the gradient ``c / divisor``, and each
negative that it overtakes has ``1 / divisor`` from it. A rule takes three tensors ``(T,)``, of T
positives: the summand of each in the loss of its list, float64; g, the slope of that loss by its
rank, float64; how many negatives it passes by ``constant_shift``, int64. It gives shift and divisor
of each, float64, > 0. ``constant_shift`` is how far every positive moves, in units of score, if
that does not depend on the ranking; else it is None, and all have one divisor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FixedLambda:
    """The paper's rule: one λ > 0 for all lists, on ranks that are not divided by N.

    A positive moves by ``λ g`` (Rolínek et al., CVPR 2020, Eq. 3).
    """

    lambda_: float
    constant_shift = None

    def __call__(
        self, per_positive_loss: Tensor, dloss_drank: Tensor, num_overtaken: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See above."""
        lambda_ = torch.full_like(dloss_drank, self.lambda_)
        return lambda_ * dloss_drank, lambda_


@dataclass
class ErrorDriven:
    """Every positive moves up by ``shift``; its gradient is its own summand of the loss.

    For AP that is ``(1 - r⁺/r) / P``. The negatives that the positive overtakes share it equally;
    if there are none, the gradient is zero. So ``shift`` decides which of them are pushed down, not
    how hard. As it grows this becomes the error-driven update of AP-Loss (Chen et al., CVPR 2019).
    """

    constant_shift: float

    def __call__(
        self, per_positive_loss: Tensor, dloss_drank: Tensor, num_overtaken: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See above."""
        assert num_overtaken is not None
        divisor = num_overtaken.clamp(min=1) / per_positive_loss
        return torch.full_like(divisor, self.constant_shift), divisor


LambdaRule = FixedLambda | ErrorDriven


@dataclass(frozen=True)
class Pushes:
    """How hard a negative is pushed down, by the highest threshold at or below it.

    Each positive has two edges, its threshold and the moved one. It pushes a negative between them
    by ``weight / divisor``. If both are the same for all positives of a segment, whole numbers are
    summed and divided once: equal to the blackbox rule to the last digit.
    """

    divisor: Tensor  # (T,) float64, see above
    weight: Tensor  # (T,) float64, of the positive's list in the loss
    one_per_segment: bool

    def at(self, order: Tensor) -> Tensor:
        """``(2 T,)`` float64, of each edge: what all positives push there.

        Args:
            order: ``(2 T,)``, that of the sorted edges: below T a threshold, from T on a moved one.
        """
        is_moved = order >= self.divisor.shape[0]
        positive = order - is_moved * self.divisor.shape[0]
        sign = is_moved * -2 + 1
        num_pushing = sign.cumsum(0)
        if self.one_per_segment:
            pushed = num_pushing / self.divisor.index_select(0, positive)
            return pushed * self.weight.index_select(0, positive)
        each = (self.weight / self.divisor).index_select(0, positive)
        # No residue of the running sum where nothing pushes.
        return (sign * each).cumsum(0).masked_fill_(num_pushing == 0, 0)
