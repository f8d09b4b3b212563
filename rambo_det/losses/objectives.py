"""Rank-based objectives: the loss and the slope of each positive, from its rank.

All tensors are float64 with an entry for each positive: ``ranks``, r, the rank among all scores of
the list; ``hits``, h, how many of these r are no errors, a constant: r⁺, the rank among the
positives, less the worse placed ones (:mod:`.worse_placed`); ``num_pos``, P, the positives of the
list.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def average_precision(ranks: Tensor, hits: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``(1 - h/r) / P``, summed up ``1 - AP``, and ``∂/∂r = h / (P r²)`` (RaMBO, Eq. 6-7)."""
    return (1 - hits / ranks) / num_pos, hits / (num_pos * ranks * ranks)


def recall_log(ranks: Tensor, hits: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 + r - h) / P`` and its slope (RaMBO, Eq. 9)."""
    errors = ranks - hits
    return torch.log1p(errors) / num_pos, 1 / ((1 + errors) * num_pos)


def recall_loglog(ranks: Tensor, hits: Tensor, num_pos: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 + log(1 + r - h)) / P`` and its slope (RaMBO, Eq. 9)."""
    errors = ranks - hits
    inner = torch.log1p(errors)
    return torch.log1p(inner) / num_pos, 1 / ((1 + inner) * (1 + errors) * num_pos)
