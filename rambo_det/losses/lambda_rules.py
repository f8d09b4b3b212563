"""How λ is chosen: how far each positive moves up before it is ranked again, and how hard it
pushes the negatives that it overtakes."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .listed_positives import ListedPositives


class FirstRanking(NamedTuple):
    """What a rule chooses from: the ranking of T positives in L lists before they move."""

    lists: ListedPositives
    per_positive_loss: Tensor  # (T,) float64, summands of the loss of the list
    dloss_drank: Tensor  # (T,) float64, g, the slope of the loss by the positive's rank
    losses: Tensor  # (L + 1,) float64, of each list
    num_overtaken: Tensor | None  # (T,) int64, negatives that are passed by constant_shift


class LambdaRule(Protocol):
    """Moves positives and scales the gradient.

    A positive whose rank changes by ``c`` when it moves has the gradient ``c / divisor``, and each
    negative that it overtakes has ``1 / divisor`` from it.
    """

    @property
    def constant_shift(self) -> float | None:
        """How far every positive moves, in units of score, if that does not depend on the ranking.

        Else None, and the divisor is the same for all positives of a list.
        """

    def __call__(self, first: FirstRanking) -> tuple[Tensor, Tensor]:
        """Shift and divisor of each positive, ``(T,)`` float64 both, > 0."""


@dataclass
class FixedLambda:
    """The paper's rule: one λ > 0 for all lists, on ranks that are not divided by N.

    A positive moves by ``λ g`` (Rolínek et al., CVPR 2020, Eq. 3).
    """

    lambda_: float
    constant_shift = None

    def __call__(self, first: FirstRanking) -> tuple[Tensor, Tensor]:
        """See :class:`LambdaRule`."""
        lambda_ = torch.full_like(first.dloss_drank, self.lambda_)
        return lambda_ * first.dloss_drank, lambda_


@dataclass
class MedianShift:
    """λ = shift / median_k(g_k): the median positive of every list moves up by ``shift``.

    With a fixed λ the step λ·g shrinks as ``1/N²`` of the list's length and soon ends before the
    next negative, where the blackbox gradient is zero. This rule fixes the step's length instead.
    The median of an even number of slopes is the lower one. With ``log`` the gradient is that of
    ``-log AP``: divided by the list's AP, so that it does not fade where AP is close to 0.
    """

    shift: float
    log: bool = True
    constant_shift = None

    def __call__(self, first: FirstRanking) -> tuple[Tensor, Tensor]:
        """See :class:`LambdaRule`."""
        lists, slope = first.lists, first.dloss_drank
        # The median of a list without positives is never used, but its index has to be valid.
        middle = (lists.num_pos.cumsum(0) - 1 - (lists.num_pos >> 1)).clamp_(min=0)
        median = slope.index_select(0, lists.argsort(slope).index_select(0, middle))
        # Python's scalar over a tensor is rounded twice: it is reciprocal times scalar.
        lambda_ = torch.full_like(median, self.shift) / median
        divisor = lambda_ * (1 - first.losses) if self.log else lambda_
        return lists.per_place(lambda_) * slope, lists.per_place(divisor)


@dataclass
class ErrorDriven:
    """Every positive moves up by ``shift``; its gradient is its own summand of the loss.

    For AP that is ``(1 - r⁺/r) / P``. The negatives that the positive overtakes share it equally;
    if there are none, the gradient is zero. So ``shift`` decides which of them are pushed down, not
    how hard. As it grows this becomes the error-driven update of AP-Loss (Chen et al., CVPR 2019).
    """

    constant_shift: float

    def __call__(self, first: FirstRanking) -> tuple[Tensor, Tensor]:
        """See :class:`LambdaRule`."""
        assert first.num_overtaken is not None
        divisor = first.num_overtaken.clamp(min=1) / first.per_positive_loss
        return torch.full_like(divisor, self.constant_shift), divisor


@dataclass(frozen=True)
class Pushes:
    """How hard a negative is pushed down, by the highest threshold at or below it.

    Each positive has two edges, its threshold and the moved one. It pushes a negative between them
    by ``weight / divisor``. If both are the same for all positives of a segment, whole numbers are
    summed and divided once: equal to the blackbox rule to the last digit.
    """

    divisor: Tensor  # (T,) float64, see LambdaRule
    weight: Tensor  # (T,) float64, of the positive's list in the loss
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
