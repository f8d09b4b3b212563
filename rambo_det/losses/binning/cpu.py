"""bin_negatives on a CPU, by ``binning.cpp``, which is compiled when it is first needed.

Where there is no C++ compiler, or RAMBO_DET_NATIVE is 0, :mod:`.reference` does the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess

import torch
from torch import Tensor

from .compile import compiled_library

_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def bin_negatives(
    scores: Tensor,
    gt_classes: Tensor,
    edges: Tensor,
    values: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_score: float = float("inf"),
) -> tuple[Tensor, Tensor | None]:
    """See :func:`.binning.bin_negatives`."""
    native = library()
    assert native is not None
    scores, counts = scores.contiguous(), torch.empty_like(edges)
    grad = None if values is None else torch.empty_like(scores, dtype=dtype)
    if scores.shape[1] == 0:
        return counts.zero_(), grad
    native.rambo_bin_negatives(
        scores.data_ptr(), *scores.shape, gt_classes.data_ptr(), max_score, edges.data_ptr(),
        edges.shape[0], None if values is None else values.data_ptr(), dtype == torch.float64,
        None if grad is None else grad.data_ptr(), torch.get_num_threads(), counts.data_ptr(),
    )  # fmt: skip
    return counts, grad


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled C++; None, with one line in the log, where it cannot be had."""
    if os.environ.get("RAMBO_DET_NATIVE") == "0":
        return None
    try:
        native = ctypes.CDLL(str(compiled_library()))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "The loss takes longer than it could, on a CPU several times as long: its C++ part "
            "cannot be compiled or loaded (%s). A C++ compiler, which CXX may name, mends that; "
            "RAMBO_DET_NATIVE=0 silences this line.",
            " ".join(str(error).split()),
        )
        return None
    native.rambo_bin_negatives.argtypes = [
        _P, _L, _L, _P, ctypes.c_float, _P, _L, _P, _I, _P, _I, _P
    ]  # fmt: skip
    native.rambo_overtaken.argtypes = [_L] + [_P] * 8
    native.rambo_bin_negatives.restype = native.rambo_overtaken.restype = None
    return native
