"""A batch's scores, from which its loss is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from .counting import counting_for
from .keys import add_missed
from .lists import ListResult, Ranking, rank_lists
from .memory import Stored
from .processes import Gathered, Processes


class _GivenGradient(torch.autograd.Function):
    """A loss whose gradient was found in the forward, at unit upstream gradient.

    The blackbox rule is not linear in the gradient that arrives; keeping the gradient of the plain
    loss and multiplying makes every weight and AMP scale act linearly.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, loss: Tensor, grad: Tensor | None, factor: float
    ) -> Tensor:
        ctx.grad, ctx.factor = grad, factor
        ctx.shape, ctx.dtype, ctx.device = scores.shape, scores.dtype, scores.device
        return (loss * factor if math.isnan(factor) else loss).to(scores.device, torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grad is None:
            grad = torch.zeros(ctx.shape, dtype=ctx.dtype, device=ctx.device)
            return (grad.fill_(ctx.factor) if math.isnan(ctx.factor) else grad), None, None, None
        # Half precision is rounded to last.
        if ctx.factor != 1:
            upstream = upstream * ctx.factor
        return (ctx.grad * upstream).to(ctx.dtype), None, None, None


@dataclass
class Batch:
    """The scores of a batch, or of this process's part of one.

    Attributes:
        scores: ``(N, C)``, connected to the model.
        ranked: the same in float32, without gradient.
        gt_classes: ``(N,)`` int64.
        high: the highest score.
        own: ``(Q,)`` int64 each, rows and columns of the positives.
        found: the positives of all processes, keys of their classes.
        processes: those that share the batch.
    """

    scores: Tensor
    ranked: Tensor
    gt_classes: Tensor
    high: float
    own: tuple[Tensor, Tensor]
    found: Gathered
    processes: Processes

    @staticmethod
    def of(
        scores: Tensor,
        gt_classes: Tensor,
        processes: Processes | None = None,
        missed: Tensor | None = None,
    ) -> Batch:
        """A collective of ``processes``, by default of this one alone.

        Args:
            missed: ``(N,)`` integers, how many of the IoU thresholds each row misses, which counts
                where it is positive; None: none.

        Raises:
            InputError: the shapes do not fit.
        """
        if scores.dim() != 2 or gt_classes.shape != scores.shape[:1]:
            raise InputError(
                "scores must be (N, C) and gt_classes (N,), "
                f"got {tuple(scores.shape)} and {tuple(gt_classes.shape)}"
            )
        if scores.device != gt_classes.device:
            raise InputError(f"scores are on {scores.device}, gt_classes on {gt_classes.device}")
        if missed is not None and missed.shape != gt_classes.shape:
            raise InputError(f"missed must be (N,), got {tuple(missed.shape)}")
        processes = processes or Processes(together=False)
        ranked, gt_classes = scores.detach().float(), gt_classes.long().contiguous()
        rows, columns, keys = counting_for(scores.device).find(ranked, gt_classes)
        low, high = torch.stack(ranked.aminmax()).tolist() if scores.numel() else (0.0, 0.0)
        finite = math.isfinite(low) and math.isfinite(high)
        if missed is not None:
            keys = add_missed(keys, missed.index_select(0, rows))
        found = processes.gather(keys, finite)
        return Batch(scores, ranked, gt_classes, high, (rows, columns), found, processes)

    def rank(self, how: Ranking, stored: Stored | None = None) -> ListResult:
        """All about the lists of this batch, see :func:`.lists.rank_lists`; a collective."""
        # Scores that are not finite are ranked somehow: no process may leave the others waiting.
        dtype = torch.float64 if self.scores.dtype == torch.float64 else torch.float32
        return rank_lists(
            self.ranked, self.gt_classes, self.high, self.own, self.found, how, self.processes,
            stored, dtype,
        )  # fmt: skip

    def lose(self, result: ListResult) -> Tensor:
        """The loss of ``result``, a scalar in float32 that is connected to ``scores``.

        NaN, with a gradient of NaN, if a score is not finite: a ranking would hide it. The gradient
        is that of the sum over the processes, as DistributedDataParallel then takes the mean.
        """
        factor = float(self.processes.size) if self.found.finite else math.nan
        loss: Tensor = _GivenGradient.apply(self.scores, result.loss, result.grad, factor)
        return loss
