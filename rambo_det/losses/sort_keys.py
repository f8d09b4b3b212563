"""Sort keys: int64 numbers that sort by segment first and by score second.

One sort of keys ranks all segments at once. Integers compare exactly; floats shifted by segment
would be rounded. Processes exchange, and a memory keeps, only one tensor of keys.

A key is ``segment << 32 | code``. The code is an integer with the order of the float32 scores. The
segment is a class, or C for the scores of all classes together.
"""

import torch
from torch import Tensor

_SIGN = 1 << 31
#: Marks an unused place in a tensor of keys. It sorts behind all other keys.
EMPTY_KEY = torch.iinfo(torch.int64).max


def make_keys(segments: Tensor, scores: Tensor) -> Tensor:
    """Returns the keys of float32 ``scores`` in int64 ``segments``, which are in ``[0, 2^31)``.

    Example:
        >>> make_keys(torch.tensor([1, 0, 1]), torch.tensor([0.5, 9.0, -2.0])).argsort()
        tensor([1, 2, 0])
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal
    return (segments << 32) + _SIGN + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def make_keys_ceil(segments: Tensor, values: Tensor) -> Tensor:
    """Returns the keys of the float64 ``values``, rounded up to float32.

    For a float32 ``b`` and a value ``x``, ``b >= x`` holds exactly if the key of b is not below the
    key of x. So thresholds computed in float64 are compared without a rounding error.
    """
    rounded = values.float()
    return make_keys(segments, rounded) + (rounded < values)  # the next code is the next float32


def key_scores(keys: Tensor) -> Tensor:
    """Returns the float32 scores of ``keys``."""
    bits = ((keys & 0xFFFFFFFF) - _SIGN).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def key_segments(keys: Tensor) -> Tensor:
    """Returns the int64 segments of ``keys``."""
    return keys >> 32


def segment_offsets(sorted_keys: Tensor, num_segments: int) -> Tensor:
    """Returns int64 offsets ``(..., G + 1)``; segment g is ``offsets[..., g]:offsets[..., g + 1]``.

    Args:
        sorted_keys: ``(..., K)``, rising along the last dimension.
    """
    first_keys = torch.arange(num_segments + 1, device=sorted_keys.device) << 32
    of_rows = first_keys.expand(*sorted_keys.shape[:-1], -1).contiguous()
    return torch.searchsorted(sorted_keys, of_rows)


def count_at_or_above(sorted_keys: Tensor, edges: Tensor, num_segments: int) -> Tensor:
    """Returns ``(E,)`` int64: the number of keys in an edge's segment at or above the edge.

    Args:
        sorted_keys: ``(R, K)`` keys, rising in each row.
        edges: ``(E,)`` keys; their segments are below ``num_segments``.
    """
    ends = segment_offsets(sorted_keys, num_segments).index_select(1, key_segments(edges) + 1)
    of_rows = edges.expand(len(sorted_keys), -1).contiguous()
    return (ends - torch.searchsorted(sorted_keys, of_rows)).sum(dim=0)
