"""Rank-based objectives of RaMBO: they return the loss and the slope ∂/∂r of each positive.

All tensors are float64 with one entry per positive. ``ranks`` is r, the rank among all scores of
the list. ``rank_pos`` is r⁺, the rank among the positives of the list; it counts as a constant.
``num_pos`` is P, the number of positives over which the loss is averaged.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def average_precision(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``(1 - r⁺/r) / P``, in sum ``1 - AP``, and its slope ``r⁺ / (P r²)`` (Eq. 6-7)."""
    return (1 - rank_pos / ranks) / num_pos, rank_pos / (num_pos * ranks * ranks)


def recall_log(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``log(1 + r - r⁺) / P`` and its slope (Eq. 9)."""
    num_above = ranks - rank_pos
    return torch.log1p(num_above) / num_pos, 1 / ((1 + num_above) * num_pos)


def recall_loglog(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``log(1 + log(1 + r - r⁺)) / P`` and its slope (Eq. 9)."""
    num_above = ranks - rank_pos
    inner = torch.log1p(num_above)
    return torch.log1p(inner) / num_pos, 1 / ((1 + inner) * (1 + num_above) * num_pos)
