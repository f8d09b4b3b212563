"""The gradient of a ranking loss: found in the forward pass, written in the backward pass."""

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
    """The gradient as :func:`.ranking.compute_ranking` finds it: without its N·C values.

    The backward pass writes the N·C values, once. So they take no memory before the backward, and a
    loss scale multiplies them before they are rounded to half precision.
    """

    inputs: RankingInputs  # without the scores
    edges: Tensor  # (E,) int64, rising keys
    values: Tensor  # (E,) float64, gradient of a negative from its edge up to the next; see binning
    of_positives: Tensor  # (Q,) float64, gradient of this process's positives

    def write(self, scores: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the gradient ``(N, C)`` of the ranked scores, multiplied by ``factor``."""
        inputs, factor = self.inputs, factor.double()
        _, grad = binning.bin_negatives(
            scores, inputs.gt_classes, self.edges, self.values * factor, dtype, inputs.max_score
        )
        assert grad is not None
        grad[inputs.pos_rows, inputs.pos_columns] = (self.of_positives * factor).to(dtype)
        return grad


class _RankingLoss(torch.autograd.Function):
    """A loss whose gradient was computed for an upstream gradient of 1.

    The blackbox rule is not linear in the upstream gradient. This function is linear, so loss
    weights and AMP scales keep their meaning.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, ranked: Tensor, loss: Tensor, gradient: Gradient, size: int
    ) -> Tensor:
        # Autograd frees saved tensors after the backward, and raises if they changed before it.
        ctx.save_for_backward(ranked)
        ctx.gradient, ctx.size = gradient, size
        ctx.shape, ctx.dtype = scores.shape, scores.dtype
        return (loss if gradient.inputs.all_finite else loss * math.nan).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (ranked,) = ctx.saved_tensors
        if ctx.gradient.inputs.all_finite:
            grad = ctx.gradient.write(ranked, upstream * ctx.size, ctx.dtype)
        else:
            grad = torch.full_like(ranked, math.nan, dtype=ctx.dtype)
        # Scores without rows may have another number of columns.
        return grad.view(ctx.shape), None, None, None, None


def attach_gradient(
    scores: Tensor, ranked: Tensor, loss: Tensor, gradient: Gradient, processes: Processes
) -> Tensor:
    """Returns the scalar ``loss`` in float32; its backward gives ``gradient`` to ``scores``.

    If a score is not finite, loss and gradient are NaN: a ranking would hide such a score. The
    gradient is multiplied by the number of processes, as DistributedDataParallel takes the mean.
    ``scores`` are connected to the model; ``ranked`` are the detached scores of the inputs.
    """
    return _RankingLoss.apply(scores, ranked, loss, gradient, processes.size)
