"""A batch's scores, from which all losses on them are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from .gradient import Gradient
from .lists import ListResult, rank_lists
from .objectives import Objective
from .step import Step
from .targets import Lists, Targets


class _ListLoss(torch.autograd.Function):
    """Per-list losses whose gradient was found in the forward, at unit upstream gradient.

    The blackbox rule is not linear in the gradient that arrives; keeping the changes of rank of the
    plain loss and multiplying makes every weight and AMP scale act linearly.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, result: ListResult) -> Tensor:
        ctx.save_for_backward(*(result.gradient or ()))
        ctx.layout = result.layout
        ctx.dtype = scores.dtype
        return result.losses.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None]:
        if not ctx.saved_tensors:
            return grad_losses.new_zeros(ctx.layout.shape, dtype=ctx.dtype), None
        return Gradient(*ctx.saved_tensors).dense(grad_losses, ctx.layout, ctx.dtype), None


@dataclass
class Batch:
    """The scores of a batch, looked at once for all losses on them.

    Attributes:
        scores: ``(N, C)``, connected to the model.
        ranked: the same without gradient, in float32 or less.
        targets: which of them are positive.
        high: the highest score.
        finite: whether all scores are. If not, ``ranked`` is 0.
    """

    scores: Tensor
    ranked: Tensor
    targets: Targets
    high: float
    finite: bool

    @staticmethod
    def of(scores: Tensor, gt_classes: Tensor) -> Batch:
        """Raises InputError if the shapes do not fit."""
        if scores.dim() != 2 or gt_classes.shape != scores.shape[:1]:
            raise InputError(
                "scores must be (N, C) and gt_classes (N,), "
                f"got {tuple(scores.shape)} and {tuple(gt_classes.shape)}"
            )
        ranked = scores.detach()
        ranked = ranked.float() if ranked.dtype == torch.float64 else ranked
        targets = Targets.find(gt_classes, scores.shape[1])
        if not scores.numel():
            return Batch(scores, ranked, targets, 0.0, True)
        low, high = (float(x) for x in ranked.aminmax())
        if math.isfinite(low) and math.isfinite(high):
            return Batch(scores, ranked, targets, high, True)
        return Batch(scores, torch.zeros_like(ranked), targets, 0.0, False)

    def lose(
        self,
        *,
        per_class: bool,
        objective: Objective,
        step: Step,
        margin: float,
        stored: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ListResult]:
        """Losses ``(L,)`` connected to the scores, see :func:`.functional.rank_and_lose`."""
        lists = Lists(self.ranked, self.targets, per_class, self.high)
        result = rank_lists(lists, objective, step, margin, stored)
        losses: Tensor = _ListLoss.apply(self.scores, result)
        if not self.finite:
            losses = torch.where(torch.zeros_like(losses, dtype=torch.bool), losses, torch.nan)
        return losses, result
