"""The passes over all N scores: how many negatives lie above each of a few thresholds."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from . import plain
from .device import DeviceCounting
from .groups import Counting, Ranked, Thresholds
from .native import NativeCounting, native_counting

__all__ = [
    "Counting", "DeviceCounting", "NativeCounting", "Ranked", "Thresholds", "counting_for",
    "native_counting",
]  # fmt: skip

_logger = logging.getLogger(__name__)


def counting_for(device: torch.device) -> Counting:
    """The fastest passes there are for scores on the device; thresholds are on the CPU."""
    host = native_counting() or plain
    if device.type == "cpu":
        return host
    return DeviceCounting(_passes(device), host)


@functools.cache
def _passes(device: torch.device) -> ModuleType:
    """Triton's kernels; those of plain PyTorch, with one line in the log, where they do not run."""
    if device.type != "cuda" or os.environ.get("RAMBO_DET_TRITON") == "0":
        return plain
    try:
        from . import kernels

        kernels.try_out(device)
    except Exception as error:  # of Triton, of the compilers that it calls, of the driver
        _logger.warning(
            "The loss takes many times as long on this GPU as it could: its Triton kernels do not "
            "run (%s: %s). The triton that fits this torch and a C compiler mend that; "
            "RAMBO_DET_TRITON=0 silences this line.",
            type(error).__name__, " ".join(str(error).split())[:200],
        )  # fmt: skip
        return plain
    return kernels
