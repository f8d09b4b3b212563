"""The passes over all scores as Triton kernels, for a GPU.

One program looks at a block of columns and goes over blocks of rows. Each score is compared with
the lowest and the highest threshold of its two groups; one that lies between is looked up by
bisection. What lies above all thresholds of a group is summed up in registers, what lies between
in several copies of the bins, so that few additions meet at one place in memory.

Triton starts a kernel on the current device, whatever the device of the tensors, hence device_of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plain
from .groups import Thresholds

#: Scores of a block, and warps that share them.
_BLOCK, _WARPS = 256, 4
#: Programs that go over the rows: several for each multiprocessor of a large GPU.
_PROGRAMS = 2048
#: Places for the bins of all copies, and the most copies.
_PLACES, _COPIES = 1 << 18, 64
#: More scores than that are not sorted for the highest; about so many are looked at for a guess.
_SORTED, _SAMPLE = 1 << 22, 1 << 18


@triton.jit
def _bisect(value, at, first, number, longest):
    """How many of ``at[first : first + number]``, which rises, are at or below each value.

    ``longest`` is the largest number.
    """
    low = number * 0
    high = number
    while longest > 0:
        longest = longest >> 1
        middle = (low + high) >> 1
        open_ = low < high
        reached = tl.load(at + first + middle, mask=open_, other=float("inf")) <= value
        low = tl.where(open_ & reached, middle + 1, low)
        high = tl.where(open_ & (reached == 0), middle, high)
    return low


@triton.jit
def _ends(at, bounds, group, there):
    """Where a group's thresholds begin, how many there are, the lowest and the highest."""
    first = tl.load(bounds + group, mask=there, other=0).to(tl.int32)
    number = tl.load(bounds + group + 1, mask=there, other=0).to(tl.int32) - first
    some = there & (number > 0)
    lowest = tl.load(at + first, mask=some, other=float("inf"))
    highest = tl.load(at + first + number - 1, mask=some, other=float("inf"))
    return first, number, lowest, highest


@triton.jit
def _below(value, near, at, first, number, highest):
    """:func:`_bisect` for values that are ``near``: at or above the lowest threshold."""
    over = near & (value >= highest)
    between = near & (value < highest)
    number = tl.where(near, number, 0)
    open_ = tl.where(between, number, 0)
    found = _bisect(value, at, first, open_, tl.max(tl.max(open_, axis=1), axis=0))
    return tl.where(over, number, found), over, between


@triton.jit(do_not_specialize=["rows", "columns", "size"])
def _count_kernel(
    scores, gt_classes, rows, columns, row_stride, column_stride, at, bounds, bins, size,
    COPIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, number, lowest, highest = _ends(at, bounds, column, column < columns)
    first_all, number_all, lowest_all, highest_all = _ends(at, bounds, columns, columns > 0)
    mine = bins + (tl.program_id(0) % COPIES).to(tl.int64) * size
    first, number = first[None, :], number[None, :]
    lowest, highest = lowest[None, :], highest[None, :]
    zeros = tl.zeros((ROWS, COLUMNS), tl.int32)
    one = tl.full((1, 1), 1, tl.int64)
    above, above_all = zeros, zeros
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        gt_class = tl.load(gt_classes + row, mask=row < rows, other=-1)[:, None]
        place = (
            row[:, None].to(tl.int64) * row_stride + column[None, :].to(tl.int64) * column_stride
        )
        there = (row[:, None] < rows) & (column[None, :] < columns)
        value = tl.load(scores + place, mask=there, other=float("-inf"))
        negative = there & (gt_class >= 0) & (gt_class != column[None, :])
        near, near_all = negative & (value >= lowest), negative & (value >= lowest_all)
        if tl.max(tl.max((near | near_all).to(tl.int32), axis=1), axis=0) > 0:
            below, over, between = _below(value, near, at, first, zeros + number, highest)
            above += over.to(tl.int32)
            tl.atomic_add(mine + first + below - 1, zeros + one, mask=between, sem="relaxed")
            below, over, between = _below(
                value, near_all, at, first_all, zeros + number_all, highest_all
            )
            above_all += over.to(tl.int32)
            tl.atomic_add(mine + first_all + below - 1, zeros + one, mask=between, sem="relaxed")
    some = (column[None, :] < columns) & (number > 0)
    above = tl.sum(above.to(tl.int64), axis=0)[None, :]
    tl.atomic_add(mine + first + number - 1, above, mask=some & (above > 0), sem="relaxed")
    total = tl.sum(tl.sum(above_all.to(tl.int64), axis=1), axis=0)
    last_all = mine + first_all + number_all - 1
    tl.atomic_add(last_all, total, mask=(total > 0) & (number_all > 0), sem="relaxed")


@triton.jit
def _moved(was, now, first, group, columns, before, after, factors, near, WEIGHTED: tl.constexpr):
    """What a negative below whose score ``was``, and then ``now``, thresholds are gets of a group.

    By tables of sums of weights or, where all weigh the same, by one of what comes out.
    """
    if WEIGHTED:
        found = tl.load(before + first + was + group, mask=near, other=0.0)
        found -= tl.load(after + first + now + group, mask=near, other=0.0)
        found = found / tl.load(factors + group, mask=group <= columns, other=1.0)
        found *= tl.load(factors + columns + 1 + group, mask=group <= columns, other=0.0)
        found = tl.where(near, found, 0.0)
    else:
        found = tl.load(before + first + (was - now) + group, mask=near, other=0.0)
    return found


@triton.jit(do_not_specialize=["rows", "columns", "size"])
def _write_kernel(
    scores, gt_classes, rows, columns, row_stride, column_stride, at, after_at, bounds, before,
    after, factors, grad, grad_row_stride, grad_column_stride, bins, size,
    WEIGHTED: tl.constexpr, COPIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    first, number, lowest, highest = _ends(at, bounds, column, inside)
    after_first, after_number, after_lowest, after_highest = _ends(after_at, bounds, column, inside)
    first_all, number_all, lowest_all, highest_all = _ends(at, bounds, columns, columns > 0)
    after_first_all, after_number_all, after_lowest_all, after_highest_all = _ends(
        after_at, bounds, columns, columns > 0
    )
    mine = bins + (tl.program_id(0) % COPIES).to(tl.int64) * size
    first, number = first[None, :], number[None, :]
    lowest, highest = lowest[None, :], highest[None, :]
    after_lowest, after_highest = after_lowest[None, :], after_highest[None, :]
    zeros = tl.zeros((ROWS, COLUMNS), tl.int32)
    one = tl.full((1, 1), 1, tl.int64)
    above, above_all = zeros, zeros
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        gt_class = tl.load(gt_classes + row, mask=row < rows, other=-1)[:, None]
        place = (
            row[:, None].to(tl.int64) * row_stride + column[None, :].to(tl.int64) * column_stride
        )
        there = (row[:, None] < rows) & (column[None, :] < columns)
        value = tl.load(scores + place, mask=there, other=float("-inf"))
        negative = there & (gt_class >= 0) & (gt_class != column[None, :])
        near, near_all = negative & (value >= lowest), negative & (value >= lowest_all)
        part = tl.zeros((ROWS, COLUMNS), tl.float64)
        if tl.max(tl.max((near | near_all).to(tl.int32), axis=1), axis=0) > 0:
            was, was_over, was_between = _below(value, near, at, first, zeros + number, highest)
            now, over, between = _below(
                value, near & (value >= after_lowest), after_at, first, zeros + number,
                after_highest,
            )  # fmt: skip
            above += over.to(tl.int32)
            tl.atomic_add(mine + first + now - 1, zeros + one, mask=between, sem="relaxed")
            part = _moved(
                was, now, first, column[None, :], columns, before, after, factors, near, WEIGHTED
            )

            was, was_over, was_between = _below(
                value, near_all, at, first_all, zeros + number_all, highest_all
            )
            now, over, between = _below(
                value, near_all & (value >= after_lowest_all), after_at, first_all,
                zeros + number_all, after_highest_all,
            )  # fmt: skip
            above_all += over.to(tl.int32)
            tl.atomic_add(mine + first_all + now - 1, zeros + one, mask=between, sem="relaxed")
            part += _moved(
                was, now, first_all, columns, columns, before, after, factors, near_all, WEIGHTED
            )
        place = (
            row[:, None].to(tl.int64) * grad_row_stride
            + column[None, :].to(tl.int64) * grad_column_stride
        )
        tl.store(grad + place, part.to(grad.dtype.element_ty), mask=there)
    some = (column[None, :] < columns) & (number > 0)
    above = tl.sum(above.to(tl.int64), axis=0)[None, :]
    tl.atomic_add(mine + first + number - 1, above, mask=some & (above > 0), sem="relaxed")
    total = tl.sum(tl.sum(above_all.to(tl.int64), axis=1), axis=0)
    last_all = mine + first_all + number_all - 1
    tl.atomic_add(last_all, total, mask=(total > 0) & (number_all > 0), sem="relaxed")


@triton.jit(do_not_specialize=["number"])
def _listed_kernel(values, groups, number, at, bounds, bins, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < number
    value = tl.load(values + place, mask=there, other=float("-inf"))
    first, many, lowest, _ = _ends(at, bounds, tl.load(groups + place, mask=there, other=0), there)
    near = there & (value >= lowest)
    many = tl.where(near, many, 0)
    found = _bisect(value, at, first, many, tl.max(many, axis=0))
    tl.atomic_add(bins + first + found - 1, (found * 0 + 1).to(tl.int64), mask=near, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "columns", "room"])
def _highest_kernel(
    scores, gt_classes, rows, columns, row_stride, column_stride, base, cut, room, counter, places,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lowest = tl.load(base + column, mask=column < columns, other=float("inf"))[None, :]
    least = tl.load(cut)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        gt_class = tl.load(gt_classes + row, mask=row < rows, other=-1)[:, None]
        place = (
            row[:, None].to(tl.int64) * row_stride + column[None, :].to(tl.int64) * column_stride
        )
        there = (row[:, None] < rows) & (column[None, :] < columns)
        value = tl.load(scores + place, mask=there, other=float("-inf"))
        negative = there & (gt_class >= 0) & (gt_class != column[None, :])
        kept = negative & (value - lowest >= least)
        to = tl.atomic_add(counter + kept.to(tl.int32) * 0, kept.to(tl.int64), mask=kept)
        kept = kept & (to < room)
        tl.store(places + to, row[:, None].to(tl.int64) * columns + column[None, :], mask=kept)


def _tiles(scores: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The programs, along rows and columns, the blocks of each and its warps."""
    rows, columns = scores.shape
    widest = min(triton.next_power_of_2(columns), 64)
    widths = [w for w in (1, 2, 4, 8, 16, 32, 64) if min(widest, 8) <= w <= widest]
    # As little as possible hangs over the last column.
    width = min(reversed(widths), key=lambda w: -(-columns // w) * w)
    height = _BLOCK // width
    across = -(-columns // width)
    down = max(min(-(-rows // height), _PROGRAMS // across), 1)
    return (down, across), {"ROWS": height, "COLUMNS": width, "num_warps": _WARPS}


def _sent(*tensors: Tensor, device: torch.device) -> list[Tensor]:
    """On the device, all in one transfer, each at a multiple of 16 bytes.

    Triton compiles a kernel anew for an address that is none.
    """
    given = [tensor.contiguous().view(torch.uint8) for tensor in tensors]
    given = [torch.nn.functional.pad(part, (0, -part.shape[0] % 16)) for part in given]
    there = torch.cat(given).to(device).split([part.shape[0] for part in given])
    return [
        part.view(tensor.dtype)[: tensor.shape[0]]
        for part, tensor in zip(there, tensors, strict=True)
    ]


def _copies(number: int) -> int:
    room = max(_PLACES // max(number, 1), 1)
    return min(1 << (room.bit_length() - 1), _COPIES)


def _at_or_above(bins: Tensor, bounds: Tensor) -> Tensor:
    """``(T,)`` int64 on the CPU, from the bins of all copies: all in a bin and those above it."""
    number = bins.shape[1]
    through = torch.nn.functional.pad(bins.sum(dim=0).cpu().cumsum(0), (1, 0))
    ends = bounds[1:].repeat_interleave(bounds.diff(), output_size=number)
    return through.index_select(0, ends) - through[:number]


def try_out(device: torch.device) -> None:
    """Runs each kernel; raises whatever keeps it from that, RuntimeError if a result is wrong."""
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.5], [1.0, 2.0]], device=device)
    gt_classes = torch.tensor([0, 2, 1], device=device)
    at, through = (
        torch.tensor([0.25, 0.75, 0.5, 1.5], device="cpu"),
        torch.arange(7.0, dtype=torch.float64, device="cpu"),
    )
    bounds = torch.tensor([0, 2, 2, 4], device="cpu")
    factors = torch.tensor([3.0, 1.0, 7.0], dtype=torch.float64, device="cpu")
    for weights, dtype in ((None, torch.float32), (through, torch.float64)):
        before = Thresholds(at, bounds, weights)
        after = Thresholds(at + 0.5, bounds, weights)
        asked = scores, gt_classes, 2.0, before, after, factors, factors, dtype
        listed = scores[0], gt_classes[:2].int(), before
        got = (*write(*asked), count(*asked[:4]), count_listed(*listed))
        want = (*plain.write(*asked), plain.count(*asked[:4]), plain.count_listed(*listed))
        if not all(torch.equal(*pair) for pair in zip(got, want, strict=True)):
            raise RuntimeError("they give other numbers than plain PyTorch")
    if _above_guess(scores, gt_classes, scores.new_zeros(2), 1).tolist() != [1, 2, 3, 4]:
        raise RuntimeError("they find other negatives than there are")


@torch.compiler.disable
def count(scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds) -> Tensor:
    """See :meth:`.groups.Counting.count`."""
    at, bounds, _ = thresholds
    number, copies = at.shape[0], _copies(at.shape[0])
    bins = torch.zeros((copies, number), dtype=torch.int64, device=scores.device)
    if scores.numel() and number:
        bounds, at = _sent(bounds, at, device=scores.device)
        grid, blocks = _tiles(scores)
        with torch.cuda.device_of(scores):
            _count_kernel[grid](
                scores, gt_classes, *scores.shape, *scores.stride(), at, bounds, bins, number,
                COPIES=copies, **blocks,
            )  # fmt: skip
    return _at_or_above(bins, thresholds.bounds)


@torch.compiler.disable
def count_listed(values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
    """See :meth:`.groups.Counting.count_listed`."""
    at, bounds, _ = thresholds
    values, groups = values.contiguous(), groups.contiguous()
    bins = torch.zeros((1, at.shape[0]), dtype=torch.int64, device=values.device)
    if values.shape[0] and at.shape[0]:
        bounds, at = _sent(bounds, at, device=values.device)
        with torch.cuda.device_of(values):
            _listed_kernel[(-(-values.shape[0] // 256),)](
                values, groups, values.shape[0], at, bounds, bins, BLOCK=256
            )
    return _at_or_above(bins, thresholds.bounds)


@torch.compiler.disable
def write(
    scores: Tensor,
    gt_classes: Tensor,
    high: float,
    before: Thresholds,
    after: Thresholds,
    divisor: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See :meth:`.groups.Counting.write`."""
    grad = torch.empty_like(scores, dtype=dtype)
    number, copies = after.at.shape[0], _copies(after.at.shape[0])
    if number == 0:
        return grad.zero_(), torch.empty_like(after.at, dtype=torch.int64)
    bins = torch.zeros((copies, number), dtype=torch.int64, device=scores.device)
    if scores.numel():
        if before.through is None or after.through is None:
            weighted, tables = False, [_multiples(before.bounds, divisor, weight)]
        else:
            weighted, tables = True, [before.through, after.through, torch.cat([divisor, weight])]
        *tables, bounds, at, after_at = _sent(
            *tables, before.bounds, before.at, after.at, device=scores.device
        )
        grid, blocks = _tiles(scores)
        with torch.cuda.device_of(scores):
            _write_kernel[grid](
                scores, gt_classes, *scores.shape, *scores.stride(), at, after_at, bounds,
                *(tables if weighted else tables * 3), grad, *grad.stride(), bins, number,
                WEIGHTED=weighted, COPIES=copies, **blocks,
            )  # fmt: skip
    return grad, _at_or_above(bins, after.bounds)


def _multiples(bounds: Tensor, divisor: Tensor, weight: Tensor) -> Tensor:
    """``(T + G,)`` float64, by group: 0, 1, 2, … thresholds, each divided and weighed."""
    number = bounds.diff() + 1
    total = int(bounds[-1]) + number.shape[0]
    group = torch.repeat_interleave(number, output_size=total)
    first = bounds[:-1] + torch.arange(number.shape[0], device=bounds.device)
    multiples = (torch.arange(total, device=bounds.device) - first[group]).double()
    return multiples / divisor[group] * weight[group]


@torch.compiler.disable
def highest(
    scores: Tensor, gt_classes: Tensor, thresholds: Thresholds | None, size: int
) -> tuple[Tensor, Tensor]:
    """See :meth:`.groups.Counting.highest`."""
    base = scores.new_zeros(scores.shape[1])
    if thresholds is not None:
        base = thresholds.base().to(scores.device)
    if scores.numel() > _SORTED:
        places = _above_guess(scores, gt_classes, base, size)
        if size <= places.shape[0]:
            row, column = places // scores.shape[1], places % scores.shape[1]
            values = scores[row, column]
            kept = (values - base.index_select(0, column)).topk(size, sorted=False).indices
            return values.index_select(0, kept), column.index_select(0, kept).int()
    above = scores - base
    column = torch.arange(scores.shape[1], device=scores.device)
    above.masked_fill_((gt_classes[:, None] == column) | (gt_classes[:, None] < 0), -torch.inf)
    found, kept = above.reshape(-1).topk(min(size, above.numel()), sorted=False)
    kept = kept[found > -torch.inf]
    row, column = kept // scores.shape[1], kept % scores.shape[1]
    return scores[row, column], column.int()


def _above_guess(scores: Tensor, gt_classes: Tensor, base: Tensor, size: int) -> Tensor:
    """Places in the flattened scores, rising, of all negatives that are above a guess.

    Of a sample of rows twice ``size`` are expected there, in proportion, and some more. There may
    be fewer; none are given if there are far too many.
    """
    # So many are looked at that the few more, 32 of the sample, are fewer than size. Anchors have
    # a period, of twos and threes as a rule, that the sample must not have.
    apart = max(min(scores.numel() // _SAMPLE, size // 32), 1) // 6 * 6 + 1
    sample = (scores[::apart] - base).masked_fill_((gt_classes[::apart] < 0)[:, None], -torch.inf)
    wanted = min(2 * size * sample.numel() // scores.numel() + 32, sample.numel())
    cut = sample.reshape(-1).topk(wanted, sorted=False).values.min()
    room = 4 * size + 4096
    places = torch.empty(room, dtype=torch.int64, device=scores.device)
    counter = torch.zeros(1, dtype=torch.int64, device=scores.device)
    grid, blocks = _tiles(scores)
    with torch.cuda.device_of(scores):
        _highest_kernel[grid](
            scores, gt_classes, *scores.shape, *scores.stride(), base, cut, room, counter, places,
            **blocks,
        )  # fmt: skip
    found = int(counter)
    # In the order in which they lie, not that of the threads: which of tied ones are kept may
    # depend on it.
    return places[: found if found <= room else 0].sort().values
