"""Scores of many lists as integers that sort by list first and by score second.

One ``searchsorted`` over such keys ranks the scores of every class at once, and integers compare
exactly where floating-point shifts would round.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SIGN = 1 << 31


def order_code(scores: Tensor) -> Tensor:
    """int64 in ``[0, 2^32)`` that order as the float32 ``scores`` do; -0.0 and 0.0 are equal."""
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + _SIGN


def decode(codes: Tensor) -> Tensor:
    """The float32 scores whose :func:`order_code` (the low 32 bits of a key) is ``codes``."""
    bits = ((codes & 0xFFFFFFFF) - _SIGN).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def make_keys(lists: Tensor, scores: Tensor) -> Tensor:
    """``list << 32 | order_code(score)``: int64, in order of list, then of score."""
    return (lists << 32) + order_code(scores)


def ceil_float32(x: Tensor) -> Tensor:
    """The smallest float32 that is not below the float64 ``x``.

    For float32 ``b``, ``b >= ceil_float32(x)`` is exactly ``b >= x``: thresholds computed in
    float64 can be compared in float32 without a rounding error.
    """
    y = x.float()
    return torch.where(y.double() < x, torch.nextafter(y, torch.full_like(y, torch.inf)), y)


def order_code64(x: Tensor) -> Tensor:
    """int64 that order as the float64 ``x`` do, which sort faster than floats; -0.0 is 0.0."""
    bits = (x + 0.0).view(torch.int64)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


def argsort_in_lists(x: Tensor, lists: Tensor, num_lists: int) -> Tensor:
    """Stable order ``(P,)`` by list ``(P,)``, then by rising float64 ``x`` ``(P,)``."""
    order = order_code64(x).argsort(stable=True)
    if num_lists == 1:
        return order
    return order.index_select(0, lists.index_select(0, order).argsort(stable=True))


def spread(per_list: Tensor, lists: Tensor) -> Tensor:
    """``per_list[lists]``: ``(P,)`` from ``(L,)``; from one list ``(1,)``, which broadcasts."""
    return per_list if per_list.shape[0] == 1 else per_list.index_select(0, lists)
