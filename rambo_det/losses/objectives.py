"""Rank-based objectives: the loss and the slope of each positive, from its rank.

All tensors are float64 with an entry for each positive: ``ranks``, the rank among all scores of the
list; ``rank_pos``, r⁺, the rank among the positives of the list, a constant; ``num_pos``, P, the
positives that the loss is the mean of.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def average_precision(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``(1 - r⁺/r) / P``, summed up ``1 - AP``, and ``∂/∂r = r⁺ / (P r²)`` (RaMBO, Eq. 6-7)."""
    return (1 - rank_pos / ranks) / num_pos, rank_pos / (num_pos * ranks * ranks)


def recall_log(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 + r - r⁺) / P`` and its slope (RaMBO, Eq. 9)."""
    num_above = ranks - rank_pos
    return torch.log1p(num_above) / num_pos, 1 / ((1 + num_above) * num_pos)


def recall_loglog(ranks: Tensor, rank_pos: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 + log(1 + r - r⁺)) / P`` and its slope (RaMBO, Eq. 9)."""
    num_above = ranks - rank_pos
    inner = torch.log1p(num_above)
    return torch.log1p(inner) / num_pos, 1 / ((1 + inner) * (1 + num_above) * num_pos)
