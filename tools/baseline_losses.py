"""Ranking losses written plainly from their papers, to measure rambo_det's against."""

import torch
from torch import Tensor

MARGIN = 0.5


class GivenGradient(torch.autograd.Function):
    """A loss of 0 with a gradient found elsewhere."""

    @staticmethod
    def forward(ctx, scores: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return scores.new_zeros(())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * upstream, None


def argsort_rambo(scores: Tensor, positive: Tensor, lambda_: float) -> Tensor:
    """RaMBO's L_APC with one λ (the paper, Eq. 3, 6): a double argsort ranks each list twice."""
    lists = scores.detach().double().t() - MARGIN * positive.t()
    positive = positive.t().bool()
    num = positive.sum(1, keepdim=True)

    def rank(y: Tensor) -> Tensor:
        return y.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1

    # A tie goes to the negative: float32 scores leave room for that in float64.
    ranks = rank(torch.where(positive, lists.nextafter(lists.new_tensor(-torch.inf)), lists))
    order = ranks.argsort(dim=1)
    rank_pos = positive.gather(1, order).cumsum(1).gather(1, ranks - 1).double()
    slope = torch.where(positive, rank_pos / (num * ranks.double() ** 2), 0.0)
    # Sorted in the order of the first ranking: who led leads in a tie.
    moved = (lists + lambda_ * slope).gather(1, order)
    new_ranks = rank(moved).gather(1, ranks - 1)
    grad = (new_ranks - ranks) / lambda_
    grad = torch.where(num > 0, grad, 0.0) / (num > 0).sum()
    return GivenGradient.apply(scores, grad.t().to(scores.dtype))


def step(x: Tensor, delta: float) -> Tensor:
    """Heaviside's step, 1/2 at 0; with δ > 0 it rises along a line from -δ to δ."""
    return (x / (2 * delta) + 0.5).clamp(0, 1) if delta else torch.heaviside(x, x.new_tensor(0.5))


def error_driven_ap(scores: Tensor, positive: Tensor, delta: float = 1.0) -> Tensor:
    """AP-loss of Chen et al., CVPR 2019 (error-driven update, Sec. 3.2): O(P N)."""
    flat = scores.detach().flatten()
    mask = positive.flatten().bool()
    background, own = flat[~mask], flat[mask]
    grad_neg, grad_pos = torch.zeros_like(background), torch.empty_like(own)
    for i, score in enumerate(own):
        higher = step(background - score, delta)
        others = step(own - score, delta).sum() + 0.5
        share = higher / (higher.sum() + others)
        grad_neg += share
        grad_pos[i] = -share.sum()
    grad = torch.empty_like(flat)
    grad[~mask], grad[mask] = grad_neg, grad_pos
    return GivenGradient.apply(scores, (grad / max(len(own), 1)).view_as(scores))


def bucketed_ap(scores: Tensor, positive: Tensor) -> Tensor:
    """Bucketed AP loss of Yavuz et al., ECCV 2024: O(N log N + P²).

    All scores are sorted. The negatives between two positives are a bucket; its mean stands for
    them, is compared with each positive, and they share its gradient. For δ = 0, as here, and
    scores without ties this is the gradient of the error-driven AP loss (the paper's Theorem).
    """
    ranked, order = scores.detach().flatten().sort(descending=True)
    mask = positive.flatten().bool()[order]
    own, background = ranked[mask], ranked[~mask]
    bucket = mask.cumsum(0)[~mask]  # as many as there are positives above
    size = torch.bincount(bucket, minlength=len(own) + 1)
    # In float64: rounded, the mean of many could lie on the other side of a positive.
    mean = size.new_zeros(len(size), dtype=torch.float64).index_add_(0, bucket, background.double())
    mean = torch.where(size > 0, mean / size, 0.0)
    higher = step(mean - own[:, None].double(), 0.0).to(own.dtype) * size
    others = step(own - own[:, None], 0.0).sum(1, keepdim=True) + 0.5
    share = higher / (higher.sum(1, keepdim=True) + others)
    grad = torch.empty_like(ranked)
    grad[mask] = -share.sum(1)
    grad[~mask] = (share.sum(0) / size)[bucket]
    grad = torch.empty_like(grad).scatter_(0, order, grad / max(len(own), 1))
    return GivenGradient.apply(scores, grad.view_as(scores))
