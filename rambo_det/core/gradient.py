"""The gradient of many lists as a table over cells, before it is written out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .keys import spread


class Layout(NamedTuple):
    """Where the gradient goes: the shape ``(N, C)`` of the scores, whether they lie transposed in
    memory, and the ``(L,)`` columns with a positive where the lists are only these."""

    shape: torch.Size
    transposed: bool
    columns: Tensor | None


class Gradient(NamedTuple):
    """``Δrank / divisor`` of every score, for L lists with K cells each.

    Attributes:
        code: int32, the cell of each score in the order of memory, see :class:`.cells.Cells`.
        table: ``(L * K + 1,)`` int32, Δrank of the scores of a cell.
        position, change, lists: ``(G,)`` int64 (change: int32), scores with a Δrank of their own.
        divisor: ``(L,)`` float64, the λ that ranks are divided by.
    """

    code: Tensor
    table: Tensor
    position: Tensor
    change: Tensor
    lists: Tensor
    divisor: Tensor

    def dense(self, upstream: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
        """``(N, C)`` gradient where ``upstream``, one number for each of all lists, arrives.

        Computed in float64 and rounded once, to ``dtype``.
        """
        weight = upstream.double()
        if layout.columns is not None:
            weight = weight.index_select(0, layout.columns)
        cells = self.table[:-1].view(weight.shape[0], -1) / self.divisor[:, None]
        table = torch.zeros(self.table.shape[0], dtype=dtype, device=weight.device)
        table[:-1] = cells.mul_(weight[:, None]).view(-1)
        out = table.index_select(0, self.code)
        own = self.change / spread(self.divisor, self.lists)
        own.mul_(spread(weight, self.lists))
        out.index_copy_(0, self.position, own.to(dtype))
        num_rows, num_columns = layout.shape[0], layout.shape[1]
        if layout.columns is not None:
            num_columns = layout.columns.shape[0]
        if layout.transposed:
            out = out.view(num_columns, num_rows).t()
        else:
            out = out.view(num_rows, num_columns)
        if layout.columns is not None:
            out = out.new_zeros(layout.shape).index_copy_(1, layout.columns, out)
        return out
