"""Score functions: they compute the scores that are ranked from a softmax head's outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError


def log_odds(logits: Tensor) -> Tensor:
    """Returns ``log(p / (1 - p))`` of the softmax p, which is ``z_c - log Σ_{j≠c} exp(z_j)``.

    The log odds order boxes exactly as the softmax does, within a class and between classes, but do
    not saturate: if one logit rises by 1, its log odds rise by 1.

    Args:
        logits: ``(N, K + 1)`` float32.

    Returns:
        ``(N, K)``: the last column, background, is dropped.
    """
    top = logits.argmax(dim=1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, top, True)
    # log Σ_{j≠c}: all logits but the largest have p <= 1/2, where log(1 - p) loses no digits.
    log_prob = logits.log_softmax(dim=1).masked_fill(is_top, -torch.inf)
    others = logits.logsumexp(dim=1, keepdim=True) + torch.log1p(-log_prob.exp())
    others_of_top = logits.masked_fill(is_top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (logits - torch.where(is_top, others_of_top, others))[:, :-1]


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
