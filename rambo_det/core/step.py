"""How λ, the length of the step that perturbs the ranking, is chosen for each list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .keys import argsort_in_lists

#: From slopes ``(P,)``, the list of each ``(P,)``, positives and loss of each list ``(L,)``: the λ
#: that scores are perturbed by and the λ that the change of ranks is divided by, ``(L,)`` both.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fixed_step(lambda_: float) -> Step:
    """The paper's rule: one constant λ > 0 for every list (on ranks that are not divided by N)."""

    def step(
        slope: Tensor, lists: Tensor, num_pos: Tensor, losses: Tensor
    ) -> tuple[Tensor, Tensor]:
        constant = torch.full_like(losses, lambda_)
        return constant, constant

    return step


def median_lift_step(lift: float, log: bool = True) -> Step:
    """λ = δ / median_k(g_k): the median positive of every list is lifted by ``lift`` = δ > 0.

    With a fixed λ the step λ·g shrinks as ``1/N²`` of the list's length and soon ends before the
    next negative, where the blackbox gradient is exactly zero. This rule keeps the step at a given
    length in units of score. The median of an even number is the lower one.

    With ``log`` it is the rule for ``-log AP`` in place of ``1 - AP``: g is divided by the list's
    AP, so λ is multiplied by it. The step, λ·g, stays the same, but the gradient does not fade
    where AP is close to 0: while positives lie at random among N scores, that of ``1 - AP`` is
    proportional to AP itself.

    A list without a positive gets some λ, which nothing uses. There must be one positive at least.
    """

    def step(
        slope: Tensor, lists: Tensor, num_pos: Tensor, losses: Tensor
    ) -> tuple[Tensor, Tensor]:
        if losses.shape[0] == 1:
            median = slope.median().view(1)
        else:
            order = argsort_in_lists(slope, lists, losses.shape[0])
            middle = num_pos.cumsum(0) - num_pos + (num_pos - 1).clamp(min=0) // 2
            median = slope[order[middle.clamp(max=slope.shape[0] - 1)]]
        # A scalar over a tensor would be reciprocal times scalar: two roundings.
        lambda_ = torch.full_like(median, lift) / median
        return lambda_, lambda_ * (1 - losses) if log else lambda_

    return step
