"""The counting passes on a CPU, by ``native.cpp``: compiled when they are first needed.

The library is kept where Python keeps this file's bytecode or, if that cannot be written, in the
cache folder, under the hash of its source, compiler and flags; it appears there only when whole.
Where there is no C++ compiler, or RAMBO_DET_NATIVE is 0, :mod:`.plain` does the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cache import cache_folder
from . import plain
from .groups import Ranked, Thresholds

_SOURCE = Path(__file__).with_name("native.cpp")
# Not -march=native: the cache may be shared by machines. No contraction: it would round otherwise
# than float64 arithmetic elsewhere does.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
_COMPILERS = ("c++", "g++", "clang++")
#: Scores that are looked at to guess how high the highest are.
_SAMPLE = 1 << 12

_logger = logging.getLogger(__name__)


class NativeCounting:
    """:class:`.groups.Counting` on a CPU; ``library`` is what :func:`_compile` gives."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._count = library.rambo_count
        self._count_listed = library.rambo_count_listed
        self._write = library.rambo_write
        self._argsort = library.rambo_argsort
        self._rank = library.rambo_rank
        self._move = library.rambo_move
        self._find = library.rambo_find
        self._find.restype = ctypes.c_int64
        self._collect = library.rambo_collect
        self._collect.restype = ctypes.c_int64

    def count(
        self, scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds
    ) -> Tensor:
        above = torch.empty(thresholds.at.shape[0], dtype=torch.int64)
        self._count(
            *_view(scores), _data(gt_classes), ctypes.c_float(high), _data(thresholds.at),
            _data(thresholds.bounds), torch.get_num_threads(), _data(above),
        )  # fmt: skip
        return above

    def count_listed(self, values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
        above = torch.empty(thresholds.at.shape[0], dtype=torch.int64)
        values, groups = values.contiguous(), groups.contiguous()
        self._count_listed(
            _data(values), _data(groups), _long(values.shape[0]), _data(thresholds.at),
            _data(thresholds.bounds), _long(thresholds.bounds.shape[0] - 1),
            torch.get_num_threads(), _data(above),
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
        above = torch.empty(after.at.shape[0], dtype=torch.int64)
        self._write(
            *_view(scores), _data(gt_classes), ctypes.c_float(high), _data(before.at),
            _data(before.bounds), _data(before.through), _data(after.at), _data(after.bounds),
            _data(after.through), _data(divisor), _data(weight), int(dtype == torch.float64),
            _data(grad), *map(_long, grad.stride()), torch.get_num_threads(), _data(above),
        )  # fmt: skip
        return grad, above

    def find(self, gt_classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        number = gt_classes.shape[0]
        rows = torch.empty(number, dtype=torch.int64)
        columns = torch.empty_like(rows)
        found = self._find(
            _data(gt_classes), _long(number), _long(num_classes), _data(rows), _data(columns)
        )
        return rows[:found], columns[:found]

    def rank(self, keys: Tensor, num_lists: int, margin: float) -> Ranked:
        number = keys.shape[0]
        order = torch.empty(number, dtype=torch.int64)
        lists, rank = torch.empty_like(order), torch.empty_like(order)
        start = torch.empty(number, dtype=torch.float64)
        at = torch.empty(number)
        bounds = torch.empty(num_lists + 1, dtype=torch.int64)
        self._rank(
            _data(keys), _long(number), _long(num_lists), ctypes.c_double(margin), _data(order),
            _data(lists), _data(rank), _data(start), _data(at), _data(bounds),
        )  # fmt: skip
        return Ranked(order, lists, bounds, rank, start, at)

    def move(self, ranked: Ranked, lambda_: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        order, at = torch.empty_like(ranked.order), torch.empty_like(ranked.at)
        self._move(
            _data(ranked.start), _data(slope), _data(lambda_), _data(ranked.bounds),
            _long(ranked.bounds.shape[0] - 1), _data(order), _data(at),
        )  # fmt: skip
        return order, at

    def argsort(self, values: Tensor, bounds: Tensor) -> Tensor:
        order = torch.empty(values.shape[0], dtype=torch.int64)
        self._argsort(
            _data(values), _data(bounds), _long(bounds.shape[0] - 1), torch.get_num_threads(),
            _data(order),
        )  # fmt: skip
        return order

    def highest(
        self, scores: Tensor, gt_classes: Tensor, floor: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        number, share = scores.numel(), 1.15 * size / max(scores.numel(), 1)
        while 0 < share < 0.5:
            # A sample guesses a height that somewhat more than `size` reach. If fewer do, more are
            # looked at: the guess costs time, never exactness.
            place = torch.linspace(0, number - 1, _SAMPLE, dtype=torch.float64).long()
            row, column = place // scores.shape[1], place % scores.shape[1]
            heights = scores[row, column] - floor[column]
            cutoff = heights.kthvalue(max(int(_SAMPLE * (1 - share)), 1)).values
            values, columns, found = self._collect_above(
                scores, gt_classes, floor, float(cutoff), int(2 * share * number)
            )
            if size <= found <= values.shape[0]:
                return plain.top(values[:found], columns[:found], floor, size)
            share *= 2
        values, columns, found = self._collect_above(scores, gt_classes, floor, -torch.inf, number)
        return plain.top(values[:found], columns[:found], floor, size)

    def _collect_above(
        self, scores: Tensor, gt_classes: Tensor, floor: Tensor, cutoff: float, room: int
    ) -> tuple[Tensor, Tensor, int]:
        values = torch.empty(room)
        columns = torch.empty(room, dtype=torch.int32)
        found = self._collect(
            *_view(scores), _data(gt_classes), _data(floor), ctypes.c_float(cutoff), _long(room),
            torch.get_num_threads(), _data(values), _data(columns),
        )  # fmt: skip
        return values, columns, found


def _data(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


_long = ctypes.c_int64


def _view(scores: Tensor) -> tuple[Any, ...]:
    return (_data(scores), *map(_long, scores.shape), *map(_long, scores.stride()))


@functools.cache
def native_counting() -> NativeCounting | None:
    """The compiled passes; None, with one line in the log, where they cannot be had."""
    if os.environ.get("RAMBO_DET_NATIVE") == "0":
        return None
    try:
        return NativeCounting(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError) as error:
        _logger.warning(
            "The loss takes several times as long on this CPU as it could: its C++ part cannot be "
            "compiled (%s). A C++ compiler, which CXX may name, mends that; RAMBO_DET_NATIVE=0 "
            "silences this line.",
            " ".join(str(error).split()),
        )
        return None


def _compiled() -> Path:
    """The library, compiled if it is not there yet."""
    named = os.environ.get("CXX")
    found = [path for path in map(shutil.which, [named] if named else _COMPILERS) if path]
    if not found:
        raise OSError(f"no C++ compiler: {named or ', '.join(_COMPILERS)} not found")
    compiler = found[0]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    parts = [_SOURCE.read_bytes(), version, repr((_FLAGS, platform.platform())).encode()]
    name = f"native-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    folders = (Path(cache_from_source(__file__)).parent, cache_folder())
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.mkdtemp(dir=folder)
        except OSError:
            continue
        try:
            _compile(compiler, Path(scratch) / name)
            os.replace(Path(scratch) / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder / name
    raise OSError(f"neither {folders[0]} nor {folders[1]} can be written")


def _compile(compiler: str, library: Path) -> None:
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
    try:
        subprocess.run([*command, "-fopenmp"], capture_output=True, check=True)
    except subprocess.CalledProcessError:  # a compiler without OpenMP: one thread
        subprocess.run(command, capture_output=True, check=True)
