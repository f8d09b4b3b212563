"""How far positives are moved in the second ranking: λ, by list or by positive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Slopes(NamedTuple):
    """What λ is chosen from.

    Attributes:
        slope: ``(P,)`` float64, g of each positive, by list.
        bounds: ``(L + 1,)`` int64: those of list l are ``slope[bounds[l]:bounds[l + 1]]``.
        losses: ``(L,)`` float64, the loss of each list.
        argsort: :meth:`.counting.Counting.argsort`.
    """

    slope: Tensor
    bounds: Tensor
    losses: Tensor
    argsort: Callable[[Tensor, Tensor], Tensor]


#: The λ of each list that scores are perturbed by and the λ that the change of ranks is divided by,
#: ``(L,)`` float64 both; anything for a list without a positive.
Step = Callable[[Slopes], tuple[Tensor, Tensor]]


@dataclass
class FixedStep:
    """The paper's rule: one constant λ > 0 for every list (on ranks that are not divided by N)."""

    lambda_: float

    def __call__(self, slopes: Slopes) -> tuple[Tensor, Tensor]:
        """See :data:`Step`."""
        constant = torch.full_like(slopes.losses, self.lambda_)
        return constant, constant


@dataclass
class MedianLift:
    """λ = (α + δ) / median_k(g_k): the median positive of every list moves up by ``lift`` = α + δ.

    With a fixed λ the step λ·g shrinks as ``1/N²`` of the list's length and soon ends before the
    next negative, where the blackbox gradient is exactly zero. This rule keeps the step at a given
    length in units of score: it takes back the margin α, which holds all positives below where they
    are scored, and goes on by δ. The median of an even number is the lower one.

    With ``log`` it is the rule for ``-log AP`` in place of ``1 - AP``: g is divided by the list's
    AP, so λ is multiplied by it. The step, λ·g, stays the same, but the gradient does not fade
    where AP is close to 0: while positives lie at random among N scores, that of ``1 - AP`` is
    proportional to AP itself.
    """

    lift: float
    log: bool = True

    def __call__(self, slopes: Slopes) -> tuple[Tensor, Tensor]:
        """See :data:`Step`."""
        first, end = slopes.bounds[:-1], slopes.bounds[1:]
        middle = ((first + end - 1) >> 1).clamp_(0, slopes.slope.shape[0] - 1)
        order = slopes.argsort(slopes.slope, slopes.bounds)
        median = slopes.slope.index_select(0, order.index_select(0, middle))
        # A scalar over a tensor would be reciprocal times scalar: two roundings.
        lambda_ = torch.full_like(median, self.lift) / median
        return lambda_, lambda_ * (1 - slopes.losses) if self.log else lambda_


@dataclass
class EachLift:
    """λ_k for every positive: each moves up by ``lift`` = α + δ, and is pulled by the loss it has.

    Where the step of :class:`MedianLift` is proportional to g_k, and so ends before the next
    negative for a positive that ranks low, here ``λ_k g_k`` is the same length for all. The change
    of rank of positive k is divided by what makes its gradient its own summand of the loss,
    ``(1 - r⁺_k / r_k) / P`` for AP, and each negative that it passes gets an equal share of that;
    where it passes none, it has no gradient. So the step decides which negatives are pushed down,
    not how hard. With δ to infinity those are all above it, and the gradient is that of the
    error-driven update of AP-Loss (Chen et al., CVPR 2019).
    """

    lift: float
