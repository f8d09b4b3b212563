"""Scores as integers that sort by segment first and by score second.

One sort of such keys ranks in all segments at once, integers compare exactly where shifted floats
would round, and one tensor of them is all that processes exchange and a memory keeps.

A key is ``segment << 32 | code``: the code orders as the float32 score does, the segment is a
class, or C for the scores of all classes together.
"""

import torch
from torch import Tensor

_SIGN = 1 << 31
#: An unused place in a tensor of keys. It sorts behind all others.
EMPTY_KEY = torch.iinfo(torch.int64).max


def make_keys(segments: Tensor, scores: Tensor) -> Tensor:
    """Keys of float32 ``scores`` in int64 ``segments`` within ``[0, 2^31)``.

    Example:
        >>> make_keys(torch.tensor([1, 0, 1]), torch.tensor([0.5, 9.0, -2.0])).argsort()
        tensor([1, 2, 0])
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal
    return (segments << 32) + _SIGN + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def make_keys_ceil(segments: Tensor, values: Tensor) -> Tensor:
    """Keys of the smallest float32 that are not below the float64 ``values``.

    For a float32 ``b``, ``b >= x`` is exactly that b's key is not below this one: thresholds
    computed in float64 are compared without a rounding error.
    """
    rounded = values.float()
    return make_keys(segments, rounded) + (rounded < values)  # the next code is the next float32


def scores_of(keys: Tensor) -> Tensor:
    """The float32 scores in ``keys``."""
    bits = ((keys & 0xFFFFFFFF) - _SIGN).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def segments_of(keys: Tensor) -> Tensor:
    """The int64 segments in ``keys``."""
    return keys >> 32


def segment_offsets(sorted_keys: Tensor, num_segments: int) -> Tensor:
    """``(..., G + 1)`` int64: the keys of segment g begin at ``offsets[..., g]`` and end at
    ``offsets[..., g + 1]``.

    Args:
        sorted_keys: ``(..., K)``, rising along the last dimension.
    """
    first_keys = torch.arange(num_segments + 1, device=sorted_keys.device) << 32
    of_rows = first_keys.expand(*sorted_keys.shape[:-1], -1).contiguous()
    return torch.searchsorted(sorted_keys, of_rows)


def count_at_or_above(sorted_keys: Tensor, edges: Tensor, num_segments: int) -> Tensor:
    """``(E,)`` int64: how many keys of an edge's segment are at or above the edge.

    Args:
        sorted_keys: ``(R, K)`` keys, rising in each row.
        edges: ``(E,)`` keys of segments below ``num_segments``.
    """
    ends = segment_offsets(sorted_keys, num_segments).index_select(1, segments_of(edges) + 1)
    of_rows = edges.expand(len(sorted_keys), -1).contiguous()
    return (ends - torch.searchsorted(sorted_keys, of_rows)).sum(dim=0)
