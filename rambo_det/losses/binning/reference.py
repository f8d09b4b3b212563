"""bin_negatives in plain PyTorch, on any device; the other backends are checked against it."""

import torch
from torch import Tensor

from ..sort_keys import make_keys

#: Scores that are processed at a time; this bounds the memory of their bins.
_CHUNK = 1 << 22


def bin_negatives(
    scores: Tensor,
    gt_classes: Tensor,
    edges: Tensor,
    values: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_score: float = float("inf"),
) -> tuple[Tensor, Tensor | None]:
    """See :func:`.binning.bin_negatives`."""
    num_classes = scores.shape[1]
    # Bin 0: scores below all edges of their segment. Bin e + 1: scores from edge e up to the next.
    bins = edges.new_zeros(edges.shape[0] + 1)
    segment_of_bin = torch.cat([edges.new_full((1,), -1), edges >> 32])
    value_of_bin = None if values is None else torch.nn.functional.pad(values, (1, 0))
    grad = None if values is None else torch.empty_like(scores, dtype=dtype)
    rows = max(_CHUNK // max(num_classes, 1), 1)
    columns = torch.arange(num_classes, device=scores.device)
    for start in range(0, scores.shape[0], rows):
        part = scores[start : start + rows].float()
        classes = gt_classes[start : start + rows, None]
        is_negative = (classes >= 0) & (classes != columns)
        part_grad = torch.zeros(part.shape, dtype=torch.float64, device=scores.device)
        for segments in (columns, torch.full_like(columns, num_classes)):
            bin_ = torch.searchsorted(edges, make_keys(segments, part), right=True)
            bin_ = bin_.where(is_negative & (segment_of_bin[bin_] == segments), 0)
            bins.index_add_(0, bin_.flatten(), torch.ones_like(bin_).flatten())
            if value_of_bin is not None:
                part_grad += value_of_bin[bin_]
        if grad is not None:
            grad[start : start + rows] = part_grad
    return cumulative_counts(bins[1:], edges), grad


def cumulative_counts(bins: Tensor, edges: Tensor) -> Tensor:
    """Returns ``(E,)`` int64 counts at or above each edge, from the counts between edges."""
    reverse_sums = torch.nn.functional.pad(bins.flip(0).cumsum(0).flip(0), (0, 1))
    end_of_segment = torch.searchsorted(edges, ((edges >> 32) + 1) << 32)
    return reverse_sums[:-1] - reverse_sums[end_of_segment]
