"""The lists that are ranked: which score belongs to which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .targets import Targets


@dataclass
class Block:
    """Lists over the same scores: those of the classes, or the one of all classes together.

    Attributes:
        values: ``(A, B)`` scores as they lie in memory: ``(N, C)`` or its transpose.
        transposed: whether they are the transpose.
        columns: ``(K,)`` int64, rising, which of the C columns these are; None: all.
        lists: the lists' numbers. As many as there are columns, or one for all of them.
        own: ``(P,)`` int64, where in the flattened values this process's positives are.
        ignored: ``(I,)`` int64, the rows of the ``(N, C)`` scores that are in no list.
    """

    values: Tensor
    transposed: bool
    columns: Tensor | None
    lists: range
    own: Tensor
    ignored: Tensor

    @property
    def list_axis(self) -> int | None:
        """The axis of ``values`` along which the list changes; None where it is but one."""
        return None if len(self.lists) == 1 else int(not self.transposed)

    @property
    def row_axis(self) -> int:
        """The axis of ``values`` along which the rows of the ``(N, C)`` scores lie."""
        return int(self.transposed)

    def untangle(self, flat: Tensor) -> Tensor:
        """``(N, K)`` from what belongs to the flattened values."""
        shaped = flat.view(self.values.shape)
        return shaped.t() if self.transposed else shaped


def make_block(
    scores: Tensor, targets: Targets, columns: Tensor | None, first: int, joined: bool
) -> Block:
    """The lists of ``scores`` ``(N, C)``, one a column, or ``joined`` one for all columns.

    Args:
        scores: contiguous or strided.
        targets: which scores are positive, which rows are in no list.
        columns: the ``(K,)`` columns that count, rising, every positive's among them; None: all.
        first: the number of the first list.
        joined: whether all columns are one list.
    """
    cols = targets.cols
    # Read as it lies: a transposed matrix has a column's scores nearest to each other.
    transposed = scores.shape[1] > 1 and scores.stride(0) < scores.stride(1)
    values = scores.t() if transposed else scores
    if columns is not None:
        cols = torch.searchsorted(columns, cols)
        values = values.index_select(int(not transposed), columns)
    outer, inner = (cols, targets.rows) if transposed else (targets.rows, cols)
    own = torch.add(inner, outer, alpha=values.shape[1])
    num = 1 if joined else values.shape[int(not transposed)]
    return Block(values, transposed, columns, range(first, first + num), own, targets.ignored)
