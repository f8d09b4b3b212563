"""Rank-based objectives: a value and a slope for each positive, from its rank.

Everything here is float64 and per positive: ``rank`` is the rank among all scores of the positive's
list, ``rank_pos`` (r⁺) the rank among the positives of the list, which is a constant of the
optimisation, and ``num_pos`` the number of positives P of the list.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def average_precision(rank: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Summands of ``L_AP = 1 - (1/P) Σ r⁺/r`` and ``∂L_AP/∂r = r⁺/(P r²)`` (RaMBO, Eq. 6-7)."""
    return (1 - rank_pos / rank) / num_pos, rank_pos / (num_pos * rank * rank)


def recall_log(rank: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Summands of ``(1/P) Σ log(1 + (r - r⁺))`` and their slopes (RaMBO, Eq. 9)."""
    missed = rank - rank_pos
    return torch.log1p(missed) / num_pos, 1 / ((1 + missed) * num_pos)


def recall_loglog(rank: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Summands of ``(1/P) Σ log(1 + log(1 + (r - r⁺)))`` and their slopes (RaMBO, Eq. 9)."""
    missed = rank - rank_pos
    inner = torch.log1p(missed)
    return torch.log1p(inner) / num_pos, 1 / ((1 + inner) * (1 + missed) * num_pos)
