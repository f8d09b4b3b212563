"""Plain implementations of ranking losses from their papers, as baselines for rambo_det's."""

import torch
from torch import Tensor

MARGIN = 0.5


class GivenGradient(torch.autograd.Function):
    """A loss of value 0 with a given gradient."""

    @staticmethod
    def forward(ctx, scores: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return scores.new_zeros(())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * upstream, None


def argsort_rambo(scores: Tensor, positive: Tensor, lambda_: float) -> Tensor:
    """Computes RaMBO's L_APC with one λ (the paper, Eq. 3, 6) by two double argsorts per list."""
    lists = scores.detach().double().t() - MARGIN * positive.t()
    positive = positive.t().bool()
    num = positive.sum(1, keepdim=True)

    def rank(y: Tensor) -> Tensor:
        return y.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1

    # In a tie the negative ranks higher: float64 has values between those of float32 scores.
    ranks = rank(torch.where(positive, lists.nextafter(lists.new_tensor(-torch.inf)), lists))
    order = ranks.argsort(dim=1)
    rank_pos = positive.gather(1, order).cumsum(1).gather(1, ranks - 1).double()
    slope = torch.where(positive, rank_pos / (num * ranks.double() ** 2), 0.0)
    # Sorts in the order of the first ranking, so that the stable sort keeps this order in a tie.
    moved = (lists + lambda_ * slope).gather(1, order)
    new_ranks = rank(moved).gather(1, ranks - 1)
    grad = (new_ranks - ranks) / lambda_
    grad = torch.where(num > 0, grad, 0.0) / (num > 0).sum()
    return GivenGradient.apply(scores, grad.t().to(scores.dtype))


def heaviside(x: Tensor, delta: float) -> Tensor:
    """Computes Heaviside's step, 1/2 at 0; with δ > 0 the step is a line from 0 at -δ to 1 at δ."""
    return (x / (2 * delta) + 0.5).clamp(0, 1) if delta else torch.heaviside(x, x.new_tensor(0.5))


def error_driven_ap(scores: Tensor, positive: Tensor, delta: float = 1.0) -> Tensor:
    """Computes the AP-loss of Chen et al., CVPR 2019 (error-driven update, Sec. 3.2) in O(P N)."""
    flat = scores.detach().flatten()
    mask = positive.flatten().bool()
    background, foreground = flat[~mask], flat[mask]
    grad_neg, grad_pos = torch.zeros_like(background), torch.empty_like(foreground)
    for i, score in enumerate(foreground):
        higher = heaviside(background - score, delta)
        others = heaviside(foreground - score, delta).sum() + 0.5
        share = higher / (higher.sum() + others)
        grad_neg += share
        grad_pos[i] = -share.sum()
    grad = torch.empty_like(flat)
    grad[~mask], grad[mask] = grad_neg, grad_pos
    return GivenGradient.apply(scores, (grad / max(len(foreground), 1)).view_as(scores))


def bucketed_ap(scores: Tensor, positive: Tensor) -> Tensor:
    """Computes the bucketed AP loss of Yavuz et al., ECCV 2024, in O(N log N + P²).

    All scores are sorted. The negatives between two positives are a bucket. The mean of a bucket is
    compared with each positive, and its negatives share its gradient. For δ = 0, as here, and
    scores without ties this is the gradient of the error-driven AP loss (the paper's Theorem).
    """
    ranked, order = scores.detach().flatten().sort(descending=True)
    mask = positive.flatten().bool()[order]
    foreground, background = ranked[mask], ranked[~mask]
    bucket = mask.cumsum(0)[~mask]  # the number of positives above
    size = torch.bincount(bucket, minlength=len(foreground) + 1)
    # In float64: a rounded mean of many scores could lie on the other side of a positive.
    mean = size.new_zeros(len(size), dtype=torch.float64).index_add_(0, bucket, background.double())
    mean = torch.where(size > 0, mean / size, 0.0)
    higher = heaviside(mean - foreground[:, None].double(), 0.0).to(foreground.dtype) * size
    others = heaviside(foreground - foreground[:, None], 0.0).sum(1, keepdim=True) + 0.5
    share = higher / (higher.sum(1, keepdim=True) + others)
    grad = torch.empty_like(ranked)
    grad[mask] = -share.sum(1)
    grad[~mask] = (share.sum(0) / size)[bucket]
    grad = torch.empty_like(grad).scatter_(0, order, grad / max(len(foreground), 1))
    return GivenGradient.apply(scores, grad.view_as(scores))
