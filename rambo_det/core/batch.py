"""A batch's scores, from which its loss is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from .keys import make_keys
from .lists import ListResult, Ranking, rank_lists
from .memory import Stored
from .processes import Gathered, Processes
from .targets import Targets


class _WeightedLoss(torch.autograd.Function):
    """A sum of list losses whose gradient was found in the forward, at unit upstream gradient.

    The blackbox rule is not linear in the gradient that arrives; keeping the changes of rank of the
    plain loss and multiplying makes every weight and AMP scale act linearly.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, result: ListResult, weights: Tensor, times: int
    ) -> Tensor:
        ctx.gradient, ctx.weights, ctx.times = result.gradient, weights, times
        ctx.shape, ctx.dtype = scores.shape, scores.dtype
        return (result.losses * weights).sum().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradient is None:
            grad = upstream.new_zeros(ctx.shape, dtype=ctx.dtype)
        else:
            weights = ctx.weights * (upstream.double() * ctx.times)
            # Half precision is rounded to once, after the terms are added.
            dtype = torch.promote_types(ctx.dtype, torch.float32)
            grad = ctx.gradient.dense(weights, ctx.shape, dtype).to(ctx.dtype)
        return grad, None, None, None


@dataclass
class Batch:
    """The scores of a batch, or of this process's part of one.

    Attributes:
        scores: ``(N, C)``, connected to the model.
        ranked: the same without gradient, in float32 or less.
        targets: which of them are positive.
        high: the highest score.
        found: the positives of all processes, keys of their classes.
        processes: those that share the batch.
    """

    scores: Tensor
    ranked: Tensor
    targets: Targets
    high: float
    found: Gathered
    processes: Processes

    @staticmethod
    def of(scores: Tensor, gt_classes: Tensor, processes: Processes | None = None) -> Batch:
        """A collective of ``processes``, by default of this one alone.

        Raises:
            InputError: the shapes do not fit.
        """
        if scores.dim() != 2 or gt_classes.shape != scores.shape[:1]:
            raise InputError(
                "scores must be (N, C) and gt_classes (N,), "
                f"got {tuple(scores.shape)} and {tuple(gt_classes.shape)}"
            )
        processes = processes or Processes(together=False)
        ranked = scores.detach()
        ranked = ranked.float() if ranked.dtype == torch.float64 else ranked
        targets = Targets.find(gt_classes, scores.shape[1])
        low, high = map(float, ranked.aminmax()) if scores.numel() else (0.0, 0.0)
        finite = math.isfinite(low) and math.isfinite(high)
        cols = targets.cols
        own = make_keys(cols, ranked[targets.rows, cols].float())
        return Batch(scores, ranked, targets, high, processes.gather(own, finite), processes)

    def rank(self, how: Ranking, stored: Stored | None = None) -> ListResult:
        """All about the lists of this batch, see :func:`.lists.rank_lists`; a collective."""
        ranked, high, found = self.ranked, self.high, self.found
        if not found.finite:
            # Whatever is said of such scores is not used, but every process has to go on.
            ranked, high = torch.zeros_like(ranked), 0.0
            lists = found.keys >> 32
            found = Gathered(
                make_keys(lists, torch.zeros_like(lists, dtype=torch.float32)), found.first, False
            )
        return rank_lists(ranked, self.targets, found, high, how, self.processes, stored)

    def lose(self, result: ListResult, weights: Tensor) -> Tensor:
        """Scalar float32, connected to ``scores``: the lists' losses weighted and summed.

        NaN, with a gradient of NaN, if a score is not finite: a ranking would hide it. The gradient
        is that of the sum over the processes, as DistributedDataParallel then takes the mean.

        Args:
            result: of :meth:`rank`.
            weights: ``(C + 1,)`` float64.
        """
        if not self.found.finite:
            weights = torch.full_like(weights, torch.nan)
        loss: Tensor = _WeightedLoss.apply(self.scores, result, weights, self.processes.size)
        return loss
