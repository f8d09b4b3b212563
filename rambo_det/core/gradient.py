"""The gradient of many lists as a table over cells, before it is written out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block
from .cells import Cells
from .keys import spread


class Gradient(NamedTuple):
    """``Δrank / divisor`` of every score, for L lists with K cells in all.

    Attributes:
        blocks, cells: the lists and the cells of their scores.
        names: ``(L,)`` int64, the index of each list in the weights that :meth:`dense` takes.
        table: ``(K + 1,)`` int32, Δrank of the scores of a cell.
        position, lists: ``(G,)`` int64, change: int32; scores with a Δrank of their own.
        divisor: ``(L,)`` float64, the λ that ranks are divided by.
    """

    blocks: list[Block]
    cells: Cells
    names: Tensor
    table: Tensor
    position: Tensor
    change: Tensor
    lists: Tensor
    divisor: Tensor

    def dense(self, weights: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """``(N, C)`` gradient of the sum of the lists' losses, weighted by float64 ``weights``.

        Computed in float64 and rounded to ``dtype``, once for each list a score is in.
        """
        weights = weights.index_select(0, self.names)
        table = torch.zeros(self.table.shape[0], dtype=dtype, device=weights.device)
        for block, (_, cells) in zip(self.blocks, self.cells.ranges, strict=True):
            lists = slice(block.lists.start, block.lists.stop)
            part = self.table[cells].view(len(block.lists), -1) / self.divisor[lists, None]
            table[cells] = part.mul_(weights[lists, None]).view(-1)
        flat = table.index_select(0, self.cells.code)
        own = (self.change / spread(self.divisor, self.lists)).mul_(spread(weights, self.lists))
        flat.index_copy_(0, self.position, own.to(dtype))
        grad: Tensor | None = None
        for block, (scores, _) in zip(
            reversed(self.blocks), reversed(self.cells.ranges), strict=True
        ):
            part = block.untangle(flat[scores])
            if block.columns is not None:
                grad = part.new_zeros(shape) if grad is None else grad
                grad = grad.index_add_(1, block.columns, part)
            else:
                grad = part if grad is None else grad.add_(part)
        assert grad is not None  # there is a block at least
        return grad
