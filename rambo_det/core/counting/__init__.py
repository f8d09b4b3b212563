"""The passes over all N scores: how many negatives lie above each of a few thresholds."""

from __future__ import annotations

import torch

from . import plain
from .groups import Counting, Ranked, Thresholds
from .native import NativeCounting, native_counting

__all__ = ["Counting", "NativeCounting", "Ranked", "Thresholds", "counting_for", "native_counting"]


def counting_for(device: torch.device) -> Counting:
    """The fastest passes there are for tensors of the device."""
    found = native_counting() if device.type == "cpu" else None
    return found or plain
