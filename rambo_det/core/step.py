"""How λ, the length of the step that perturbs the ranking, is chosen for each list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: (slopes (P,), list of each (P,), positives of each list (L,), its loss (L,)) to two (L,):
#: the λ that the scores are perturbed by, and the λ that the change of ranks is divided by.
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
    """

    def step(
        slope: Tensor, lists: Tensor, num_pos: Tensor, losses: Tensor
    ) -> tuple[Tensor, Tensor]:
        lambda_ = torch.ones_like(losses)
        if len(slope):
            order = slope.argsort(stable=True)
            order = order[lists[order].argsort(stable=True)]
            middle = num_pos.cumsum(0) - num_pos + (num_pos - 1).clamp(min=0) // 2
            median = slope[order[middle.clamp(max=len(order) - 1)]]
            # A scalar over a tensor would be reciprocal times scalar: two roundings.
            lambda_ = torch.where(num_pos > 0, torch.full_like(median, lift) / median, lambda_)
        return lambda_, lambda_ * (1 - losses) if log else lambda_

    return step
