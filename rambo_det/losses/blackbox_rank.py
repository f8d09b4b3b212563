"""Ranking as a differentiable function, for your own rank-based losses.

With a fixed λ, this package's losses have the same gradient, found by counting (:mod:`.ranking`).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blackbox_rank(scores: Tensor, lambda_: float) -> Tensor:
    """Returns the ranks of ``scores`` along the last dimension, 1 = highest.

    The gradient is ``(rk(scores + λ g) - rk(scores)) / λ``, with ``g`` the gradient of the ranks
    (Vlastelica et al., ICLR 2020; Rolínek et al., CVPR 2020, Eq. 3). It is *not* linear in ``g``.

    Args:
        scores: ``(..., N)``, float32 or float64 (half precision could make distinct scores equal).
        lambda_: interpolation strength λ > 0, in units of score per unit of ``g``.

    Returns:
        Tensor of the shape and dtype of ``scores``. Equal scores are ranked in order of position.

    Raises:
        ValueError: if λ is not positive and finite.

    Example:
        >>> scores = torch.tensor([0.1, 2.0, 1.0], requires_grad=True)
        >>> ranks = blackbox_rank(scores, lambda_=5.0)
        >>> ranks.tolist()
        [3.0, 1.0, 2.0]
    """
    if not 0 < lambda_ < math.inf:
        raise ValueError(f"lambda_ must be > 0 and finite, got {lambda_}")
    return _BlackboxRank.apply(scores, float(lambda_))


class _BlackboxRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, lambda_: float) -> Tensor:
        ranks = _rank(scores)
        ctx.save_for_backward(scores, ranks)
        ctx.lambda_ = lambda_
        return ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ranks: Tensor) -> tuple[Tensor, None]:
        scores, ranks = ctx.saved_tensors
        perturbed = _rank(scores + ctx.lambda_ * grad_ranks)
        # On a GPU, torch divides by a number less exactly than by a tensor.
        return (perturbed - ranks) / ranks.new_full((), ctx.lambda_), None


def _rank(scores: Tensor) -> Tensor:
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) + 1).to(scores.dtype)
