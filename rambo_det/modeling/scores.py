"""Score functions: they compute the scores that are ranked from the logits of a detector."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..errors import InputError


def log_odds(logits: Tensor) -> Tensor:
    """Returns ``log(p / (1 - p))`` of the softmax p, which is ``z_c - log Σ_{j≠c} exp(z_j)``.

    The log odds order boxes exactly as the softmax does, within a class and between classes, but do
    not saturate: if one logit rises by 1, its log odds rise by 1, up to log odds of 87.

    Args:
        logits: ``(N, K + 1)`` float32 or float64.

    Returns:
        ``(N, K)``: the last column, background, is dropped.
    """
    return _LogOdds.apply(logits)[:, :-1]


class _LogOdds(torch.autograd.Function):
    """Log odds of all columns. Saves one tensor of this size for the backward; autograd several."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        odds, top = _odds_and_top(logits)
        ctx.save_for_backward(odds, top)
        return odds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """With ``h = g / (1 - p)``, the gradient of z_j is ``g_j - p_j Σ_{c≠j} h_c``."""
        odds, top = ctx.saved_tensors
        p = odds.sigmoid()
        h = (1 - p).reciprocal_().mul_(grad).scatter_(1, top, 0)  # without the top logit's
        others = h.sum(dim=1, keepdim=True)
        sums = h.neg_().add_(others).scatter_(1, top, others).mul_(p)
        # The top logit's 1 - p may be tiny, and its h too large for a float32. So p is divided
        # first: the p of another logit is at most 1 - p of the top logit.
        below = (-odds.gather(1, top)).sigmoid_().clamp_(min=1e-37)
        p.scatter_(1, top, 0).div_(below).mul_(grad.gather(1, top))
        return sums.add_(p).neg_().add_(grad)


def _odds_and_top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log odds of all ``(N, K + 1)`` logits, and ``(N, 1)`` indices of the highest."""
    top_logit, top = logits.max(dim=1, keepdim=True)
    odds = logits - top_logit
    zero = odds.gather(1, top)  # NaN if the top logit is infinite
    # Without the top logit, whose share of 1 would round off small sums of the others. The steps
    # work in place, because a tensor of all anchors may have gigabytes.
    shares = odds.exp().scatter_(1, top, 0.0)
    others = shares.sum(dim=1, keepdim=True).clamp(min=1.2e-38)
    odds -= shares.neg_().add_(others).log1p_()
    return odds.scatter_(1, top, zero - others.log_()), top


#: Each turns ``(N, K + 1)`` logits into ``(N, K)`` scores.
SCORE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_odds": log_odds,
    "softmax": lambda logits: logits.softmax(dim=1)[:, :-1],
    "logits": lambda logits: logits[:, :-1],
}


def score_function(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the score function of that name; raises InputError if none has that name."""
    if name not in SCORE_FUNCTIONS:
        raise InputError(f"MODEL.RAMBO.SCORE must be one of {tuple(SCORE_FUNCTIONS)}, got {name!r}")
    return SCORE_FUNCTIONS[name]


def add_background(logits: Tensor) -> Tensor:
    """Returns ``(N, K + 1)`` logits in float32: those of K classes, and 0 for the background."""
    return pad(logits.float(), (0, 1))


def softmax_log_odds(logits: Tensor) -> Tensor:
    """Returns the log odds ``(..., K)`` of a softmax over the ``(..., K)`` logits and a 0.

    A sigmoid of them gives the probabilities of the softmax. This function is for detection: it can
    be scripted and traced.
    """
    padded = add_background(logits.flatten(0, -2))
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    # Scripting cannot compile _LogOdds, and tracing cannot save it.
    if not torch.jit.is_scripting() and needs_grad and not torch.jit.is_tracing():
        return log_odds(padded).reshape(logits.shape).clone()  # the caller changes it in place
    odds, _ = _odds_and_top(padded)
    return odds[:, :-1].reshape(logits.shape)
