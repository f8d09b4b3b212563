"""The gradient of a loss on the ranking, on its way back."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import binning
from .distributed import Processes
from .inputs import RankingInputs


@dataclass
class Gradient:
    """What :func:`.ranking.rank` finds of the gradient: all but the N·C values themselves.

    They are written in the backward, once. So they take no memory before, and a loss scale
    multiplies them before they are rounded to half precision.
    """

    inputs: RankingInputs  # without the scores
    edges: Tensor  # (E,) int64 keys, and the gradient of a negative by the highest one at or below
    values: Tensor  # (E,) float64, see binning
    of_positives: Tensor  # (Q,) float64, of this process's own

    def write(self, scores: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """``(N, C)``, the gradient of the scores that were ranked, times a scalar."""
        of, factor = self.inputs, factor.double()
        _, grad = binning.bin_negatives(
            scores, of.gt_classes, self.edges, self.values * factor, dtype, of.max_score
        )
        assert grad is not None
        grad[of.rows, of.columns] = (self.of_positives * factor).to(dtype)
        return grad


class _RankingLoss(torch.autograd.Function):
    """A loss with a gradient that was found at unit upstream gradient.

    The blackbox rule is not linear in the gradient that arrives; this is, so loss weights and AMP
    scales keep their meaning.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, ranked: Tensor, loss: Tensor, gradient: Gradient, size: int
    ) -> Tensor:
        # Freed after the backward, and an error if they are changed before it.
        ctx.save_for_backward(ranked)
        ctx.gradient, ctx.size = gradient, size
        ctx.shape, ctx.dtype = scores.shape, scores.dtype
        return (loss if gradient.inputs.finite else loss * math.nan).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (ranked,) = ctx.saved_tensors
        if ctx.gradient.inputs.finite:
            grad = ctx.gradient.write(ranked, upstream * ctx.size, ctx.dtype)
        else:
            grad = torch.full_like(ranked, math.nan, dtype=ctx.dtype)
        # Scores without a row may have another width.
        return grad.view(ctx.shape), None, None, None, None


def attach_gradient(
    scores: Tensor, ranked: Tensor, loss: Tensor, gradient: Gradient, processes: Processes
) -> Tensor:
    """``loss`` as a float32 scalar that hands its gradient to ``scores`` in the backward.

    NaN, with a gradient of NaN, if a score is not finite: a ranking would hide it. The gradient is
    that of the sum over the processes, as DistributedDataParallel then takes the mean. ``scores``
    are connected to the model, ``ranked`` are those of the inputs; ``loss`` is a scalar.
    """
    attached: Tensor = _RankingLoss.apply(scores, ranked, loss, gradient, processes.size)
    return attached
