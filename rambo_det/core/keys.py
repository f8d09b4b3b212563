"""Positives as integers that sort by list first and by score second.

Sorted once, they rank in all lists at the same time; integers compare exactly where floating-point
shifts would round; and one tensor of them is all that processes exchange and a memory keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SIGN = 1 << 31
_LIST_BITS = 24
_LIST = (1 << _LIST_BITS) - 1
_MISSED = 32 + _LIST_BITS
#: What a key has room for: missed IoU thresholds of a positive.
MOST_MISSED = 127


def order_code(scores: Tensor) -> Tensor:
    """int64 in ``[0, 2^32)`` that order as the float32 ``scores`` do; -0.0 and 0.0 are equal."""
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + _SIGN


def decode(keys: Tensor) -> Tensor:
    """The float32 scores whose :func:`order_code`, the low 32 bits of a key, is in ``keys``."""
    bits = ((keys & 0xFFFFFFFF) - _SIGN).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def make_keys(lists: Tensor, scores: Tensor) -> Tensor:
    """``list << 32 | order_code(score)``, int64.

    Args:
        lists: int64 in ``[0, 2^24)``.
        scores: float32.
    """
    return (lists << 32) + order_code(scores)


def add_missed(keys: Tensor, missed: Tensor) -> Tensor:
    """``missed << 56 | key``.

    Args:
        missed: integers in ``[0, MOST_MISSED]``, how many IoU thresholds each positive misses.
    """
    return keys + (missed.long() << _MISSED)


def list_of(keys: Tensor) -> Tensor:
    """The list of each key."""
    return (keys >> 32) & _LIST


def missed_of(keys: Tensor) -> Tensor:
    """How many IoU thresholds each key's positive misses."""
    return keys >> _MISSED


def in_list(keys: Tensor, lists: Tensor | int) -> Tensor:
    """``list << 32 | order_code(score)`` of the scores of ``keys``, for other lists."""
    return (keys & 0xFFFFFFFF) + (lists << 32)


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
