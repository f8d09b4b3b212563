"""The counting passes on a CPU, by ``native.cpp``: compiled when they are first needed.

Where there is no C++ compiler, or RAMBO_DET_NATIVE is 0, :mod:`.plain` does the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .build import compiled_library
from .groups import Ranked, Thresholds

_TYPES = {
    "-": None, "p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float,
    "d": ctypes.c_double,
}  # fmt: skip
#: Of each function its result and its arguments, as native.cpp has them.
_FUNCTIONS = {
    "count": ("-", "pllll p f pp i p"),
    "count_listed": ("-", "ppl ppl i p"),
    "write": ("-", "pllll p f ppp ppp pp ipll i p"),
    "find": ("l", "pllll p i ppp"),
    "rank": ("-", "pll d pppppp"),
    "move": ("-", "pppp l pp"),
    "argsort": ("-", "pp l i p"),
    "average_precision": ("d", "pllll p f ppl pl pppll ii ddii d ipll i pppppp"),
    "highest": ("l", "pllll p pp l i pp"),
}

_logger = logging.getLogger(__name__)


class Fused(NamedTuple):
    """What :meth:`NativeCounting.average_precision` gives.

    Attributes:
        loss, losses, present, thresholds, grad: as those of :class:`..lists.ListResult`.
        above, change: ``(P,)`` int64, of each positive found.
    """

    loss: Tensor
    losses: Tensor
    present: Tensor
    above: Tensor
    change: Tensor
    thresholds: Thresholds
    grad: Tensor


class NativeCounting:
    """:class:`.groups.Counting` on a CPU; ``library``: the compiled native.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._native: Any = SimpleNamespace()
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"rambo_{name}")
            function.restype = _TYPES[result]
            function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
            setattr(self._native, name, function)

    def count(
        self, scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds
    ) -> Tensor:
        above = torch.empty(thresholds.at.shape[0], dtype=torch.int64, device="cpu")
        self._native.count(
            *_view(scores), gt_classes.data_ptr(), high, thresholds.at.data_ptr(),
            thresholds.bounds.data_ptr(), torch.get_num_threads(), above.data_ptr(),
        )  # fmt: skip
        return above

    def count_listed(self, values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
        above = torch.empty(thresholds.at.shape[0], dtype=torch.int64, device="cpu")
        values, groups = values.contiguous(), groups.contiguous()
        self._native.count_listed(
            values.data_ptr(), groups.data_ptr(), values.shape[0], thresholds.at.data_ptr(),
            thresholds.bounds.data_ptr(), thresholds.bounds.shape[0] - 1,
            torch.get_num_threads(), above.data_ptr(),
        )  # fmt: skip
        return above

    def write(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        high: float,
        before: Thresholds,
        after: Thresholds,
        divisor: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        grad = torch.empty_like(scores, dtype=dtype)
        above = torch.empty(after.at.shape[0], dtype=torch.int64, device="cpu")
        self._native.write(
            *_view(scores), gt_classes.data_ptr(), high, before.at.data_ptr(),
            before.bounds.data_ptr(), _pointer(before.through), after.at.data_ptr(),
            after.bounds.data_ptr(), _pointer(after.through), divisor.data_ptr(),
            weight.data_ptr(), dtype == torch.float64, grad.data_ptr(), *grad.stride(),
            torch.get_num_threads(), above.data_ptr(),
        )  # fmt: skip
        return grad, above

    def average_precision(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        high: float,
        found: tuple[Tensor, Tensor],
        stored: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        lists: tuple[bool, bool],
        step: tuple[float, int, bool],
        margin: float,
        beta: float,
        dtype: torch.dtype,
    ) -> Fused | None:
        """All of :func:`..lists.rank_lists` for one list a group and a single process.

        Args:
            scores, gt_classes, high, margin, beta, dtype: as there.
            found: keys and rows ``(P,)`` int64 of the positives.
            stored: the fields of a :class:`..memory.Stored`.
            lists: whether those of the classes are ranked, and that of all classes.
            step: lift or λ, the rule (0: ``MedianLift``, 1: ``FixedStep``, 2: ``EachLift`` of
                :mod:`..step`), whether the loss is -log AP.

        Returns:
            None where nothing is positive.
        """
        keys, rows = found
        here, num_lists = keys.shape[0], scores.shape[1] + 1
        ring: tuple[int | None, ...] = (None, 0, None, None, None, 0, 0)
        remembered = 0
        if stored is not None:
            positives, remembered = stored[0], stored[0].numel()
            ring = (
                positives.data_ptr(), remembered, *(part.data_ptr() for part in stored[1:]),
                *stored[1].shape,
            )  # fmt: skip
        grad = torch.empty_like(scores, dtype=dtype)
        at = torch.empty(here * sum(lists) + remembered, dtype=torch.float32, device="cpu")
        losses = torch.empty(num_lists, dtype=torch.float64, device="cpu")
        present = torch.empty(num_lists, dtype=torch.bool, device="cpu")
        bounds = torch.empty(num_lists + 1, dtype=torch.int64, device="cpu")
        above = torch.empty(here, dtype=torch.int64, device="cpu")
        change = torch.empty_like(above)
        loss = self._native.average_precision(
            *_view(scores), gt_classes.data_ptr(), high, keys.data_ptr(), rows.data_ptr(), here,
            *ring, *lists, margin, *step, beta, dtype == torch.float64, grad.data_ptr(),
            *grad.stride(), torch.get_num_threads(), at.data_ptr(), bounds.data_ptr(),
            losses.data_ptr(), present.data_ptr(), above.data_ptr(), change.data_ptr(),
        )  # fmt: skip
        number = int(bounds[-1])
        if number == 0:
            return None
        value = torch.tensor(loss, dtype=torch.float64, device="cpu")
        return Fused(value, losses, present, above, change, Thresholds(at[:number], bounds), grad)

    def find(self, scores: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns, keys = torch.empty((3, len(gt_classes)), dtype=torch.int64, device="cpu")
        found = self._native.find(
            *_view(scores), gt_classes.data_ptr(), torch.get_num_threads(), rows.data_ptr(),
            columns.data_ptr(), keys.data_ptr(),
        )  # fmt: skip
        return rows[:found], columns[:found], keys[:found]

    def rank(self, keys: Tensor, num_lists: int, margin: float) -> Ranked:
        number = keys.shape[0]
        order = torch.empty(number, dtype=torch.int64, device="cpu")
        lists, rank = torch.empty_like(order), torch.empty_like(order)
        start = torch.empty(number, dtype=torch.float64, device="cpu")
        at = torch.empty(number, dtype=torch.float32, device="cpu")
        bounds = torch.empty(num_lists + 1, dtype=torch.int64, device="cpu")
        self._native.rank(
            keys.data_ptr(), number, num_lists, margin, order.data_ptr(),
            lists.data_ptr(), rank.data_ptr(), start.data_ptr(), at.data_ptr(), bounds.data_ptr(),
        )  # fmt: skip
        return Ranked(order, lists, bounds, rank, start, at)

    def move(self, ranked: Ranked, lambda_: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        order, at = torch.empty_like(ranked.order), torch.empty_like(ranked.at)
        self._native.move(
            ranked.start.data_ptr(), slope.data_ptr(), lambda_.data_ptr(), ranked.bounds.data_ptr(),
            ranked.bounds.shape[0] - 1, order.data_ptr(), at.data_ptr(),
        )  # fmt: skip
        return order, at

    def argsort(self, values: Tensor, bounds: Tensor) -> Tensor:
        order = torch.empty(values.shape[0], dtype=torch.int64, device="cpu")
        self._native.argsort(
            values.data_ptr(), bounds.data_ptr(), bounds.shape[0] - 1, torch.get_num_threads(),
            order.data_ptr(),
        )  # fmt: skip
        return order

    def highest(
        self, scores: Tensor, gt_classes: Tensor, thresholds: Thresholds | None, size: int
    ) -> tuple[Tensor, Tensor]:
        room = min(size, scores.numel())
        values = torch.empty(room, dtype=torch.float32, device="cpu")
        columns = torch.empty(room, dtype=torch.int32, device="cpu")
        at, bounds = (None, None) if thresholds is None else thresholds[:2]
        number = self._native.highest(
            *_view(scores), gt_classes.data_ptr(), _pointer(at), _pointer(bounds), size,
            torch.get_num_threads(), values.data_ptr(), columns.data_ptr(),
        )  # fmt: skip
        return values[:number], columns[:number]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _view(scores: Tensor) -> tuple[int, ...]:
    return (scores.data_ptr(), *scores.shape, *scores.stride())


@functools.cache
def native_counting() -> NativeCounting | None:
    """The compiled passes; None, with one line in the log, where they cannot be had."""
    if os.environ.get("RAMBO_DET_NATIVE") == "0":
        return None
    try:
        return NativeCounting(ctypes.CDLL(str(compiled_library())))
    except (OSError, subprocess.SubprocessError) as error:
        _logger.warning(
            "The loss takes longer than it could, on a CPU several times as long: its C++ part "
            "cannot be compiled or loaded (%s). A C++ compiler, which CXX may name, mends that; "
            "RAMBO_DET_NATIVE=0 silences this line.",
            " ".join(str(error).split()),
        )
        return None
