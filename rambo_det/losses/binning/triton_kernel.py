"""bin_negatives as one Triton kernel, for a GPU.

Each program handles a block of columns and loops over blocks of rows. It compares a score with the
lowest and the highest edge of its two segments. It looks up scores between these edges by
bisection. It counts scores above all edges in registers, and scores between in one of several
copies of the bins, so that few atomic additions hit the same address.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..sort_keys import key_scores, segment_offsets
from .reference import cumulative_counts

#: Scores per block, and warps per block.
_BLOCK, _WARPS = 256, 4
#: Upper limit of programs per launch: several for each multiprocessor of a large GPU.
_MAX_PROGRAMS = 2048
#: Upper limits of the bins in all copies together, and of the copies.
_MAX_BINS, _MAX_COPIES = 1 << 18, 64


@triton.jit
def _segment(edges, offsets, segment, exists):
    """Returns a segment's first edge index, number of edges, and lowest and highest edge or NaN."""
    first = tl.load(offsets + segment, mask=exists, other=0).to(tl.int32)
    number = tl.load(offsets + segment + 1, mask=exists, other=0).to(tl.int32) - first
    some = exists & (number > 0)  # else NaN: no score, not even infinity, is >= NaN
    lowest = tl.load(edges + first, mask=some, other=float("nan"))
    highest = tl.load(edges + first + number - 1, mask=some, other=float("nan"))
    return first, number, lowest, highest


@triton.jit
def _num_at_or_below(value, near, edges, first, number, highest):
    """Returns the number of edges at or below each value; 0 for values that are not ``near``.

    A ``near`` value is at or above the lowest edge. Also returns which near values are at or above
    the highest edge, and which are below it.
    """
    over = near & (value >= highest)
    between = near & (value < highest)
    low = tl.zeros_like(value).to(tl.int32)
    high = tl.where(between, number, 0)
    longest = tl.max(tl.max(high, axis=1), axis=0)
    while longest > 0:
        longest = longest >> 1
        middle = (low + high) >> 1
        searching = low < high
        reached = tl.load(edges + first + middle, mask=searching, other=float("inf")) <= value
        low = tl.where(searching & reached, middle + 1, low)
        high = tl.where(searching & (reached == 0), middle, high)
    return tl.where(over, number, low), over, between


@triton.jit(do_not_specialize=["rows", "columns", "num_edges"])
def _bin_kernel(
    scores, gt_classes, rows, columns, row_stride, column_stride, edges, offsets, bins, num_edges,
    values, grad, grad_row_stride, grad_column_stride,
    WRITE: tl.constexpr, COPIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, number, lowest, highest = _segment(edges, offsets, column, column < columns)
    first, number = first[None, :], number[None, :]
    lowest, highest = lowest[None, :], highest[None, :]
    # The same for the segment of all columns.
    first_all, number_all, lowest_all, highest_all = _segment(edges, offsets, columns, columns > 0)
    counts = bins + (tl.program_id(0) % COPIES).to(tl.int64) * num_edges
    zeros = tl.zeros((ROWS, COLUMNS), tl.int32)
    one = tl.full((1, 1), 1, tl.int64)
    num_over, num_over_all = zeros, zeros
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        gt_class = tl.load(gt_classes + row, mask=row < rows, other=-1)[:, None]
        row_index, column_index = row[:, None].to(tl.int64), column[None, :].to(tl.int64)
        exists = (row[:, None] < rows) & (column[None, :] < columns)
        position = row_index * row_stride + column_index * column_stride
        value = tl.load(scores + position, mask=exists, other=float("-inf")).to(tl.float32)
        negative = exists & (gt_class >= 0) & (gt_class != column[None, :])
        near, near_all = negative & (value >= lowest), negative & (value >= lowest_all)
        block_grad = tl.zeros((ROWS, COLUMNS), tl.float64)
        if tl.max(tl.max((near | near_all).to(tl.int32), axis=1), axis=0) > 0:
            below, over, between = _num_at_or_below(
                value, near, edges, first, zeros + number, highest
            )
            num_over += over.to(tl.int32)
            tl.atomic_add(counts + first + below - 1, zeros + one, mask=between, sem="relaxed")
            if WRITE:
                block_grad += tl.load(values + first + below - 1, mask=near, other=0.0)
            below, over, between = _num_at_or_below(
                value, near_all, edges, first_all, zeros + number_all, highest_all
            )
            num_over_all += over.to(tl.int32)
            tl.atomic_add(counts + first_all + below - 1, zeros + one, mask=between, sem="relaxed")
            if WRITE:
                block_grad += tl.load(values + first_all + below - 1, mask=near_all, other=0.0)
        if WRITE:
            position = row_index * grad_row_stride + column_index * grad_column_stride
            if grad.dtype.element_ty != tl.float64:  # half precision is rounded from float32
                block_grad = block_grad.to(tl.float32)
            tl.store(grad + position, block_grad.to(grad.dtype.element_ty), mask=exists)
    total = tl.sum(num_over.to(tl.int64), axis=0)[None, :]
    tl.atomic_add(counts + first + number - 1, total, mask=total > 0, sem="relaxed")
    total_all = tl.sum(tl.sum(num_over_all.to(tl.int64), axis=1), axis=0)
    tl.atomic_add(counts + first_all + number_all - 1, total_all, mask=total_all > 0, sem="relaxed")


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Returns the number of programs along rows and columns, and the kernel's block sizes."""
    widest = min(triton.next_power_of_2(columns), 64)
    widths = [w for w in (1, 2, 4, 8, 16, 32, 64) if min(widest, 8) <= w <= widest]
    # The width with the fewest unused columns in the last block.
    width = min(reversed(widths), key=lambda w: -(-columns // w) * w)
    height = _BLOCK // width
    across = -(-columns // width)
    down = max(min(-(-rows // height), _MAX_PROGRAMS // across), 1)
    return (down, across), {"ROWS": height, "COLUMNS": width, "num_warps": _WARPS}


def _lacks_bfloat16(device: torch.device) -> bool:
    """Returns whether a GPU cannot convert bfloat16 (before Ampere); older Tritons fail on it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


@torch.compiler.disable
def bin_negatives(
    scores: Tensor,
    gt_classes: Tensor,
    edges: Tensor,
    values: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_score: float = float("inf"),
) -> tuple[Tensor, Tensor | None]:
    """See :func:`.binning.bin_negatives`."""
    if torch.bfloat16 in (scores.dtype, dtype) and _lacks_bfloat16(scores.device):
        counts, grad = bin_negatives(scores.float(), gt_classes, edges, values, torch.float32)
        return counts, None if grad is None else grad.to(dtype)
    num_edges, write = edges.shape[0], values is not None
    make = torch.empty_like if num_edges else torch.zeros_like
    grad = make(scores, dtype=dtype) if write else None
    max_copies = max(_MAX_BINS // max(num_edges, 1), 1)
    copies = min(1 << (max_copies.bit_length() - 1), _MAX_COPIES)
    bins = edges.new_zeros((copies, num_edges))
    if scores.numel() and num_edges:
        offsets = segment_offsets(edges, scores.shape[1] + 1)
        out = grad if grad is not None else scores  # a placeholder if the kernel writes no gradient
        grid, blocks = _tiles(*scores.shape)
        # Triton launches kernels on the current device, not on the device of the tensors.
        with torch.cuda.device_of(scores):
            _bin_kernel[grid](
                scores, gt_classes, *scores.shape, *scores.stride(), key_scores(edges), offsets,
                bins, num_edges, values if write else scores, out, *out.stride(),
                WRITE=write, COPIES=copies, **blocks,
            )  # fmt: skip
    return cumulative_counts(bins.sum(dim=0), edges), grad
