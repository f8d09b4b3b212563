"""Counting where the scores are on a GPU: the few positives are sorted on the CPU.

What is done with P positives are some fifty small operations, which take a GPU longer to start than
a CPU to do; only thresholds and counts travel.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import plain
from .groups import Counting, Ranked, Thresholds


class DeviceCounting:
    """:class:`.groups.Counting` for scores on any device.

    Args:
        passes: the module with the passes over scores: :mod:`.plain` or :mod:`.kernels`.
        host: for everything on the CPU.
    """

    def __init__(self, passes: ModuleType, host: Counting) -> None:
        self._passes, self._host = passes, host

    def count(
        self, scores: Tensor, gt_classes: Tensor, high: float, thresholds: Thresholds
    ) -> Tensor:
        above: Tensor = self._passes.count(scores, gt_classes, high, thresholds)
        return above

    def count_listed(self, values: Tensor, groups: Tensor, thresholds: Thresholds) -> Tensor:
        passes = self._host if values.device.type == "cpu" else self._passes
        above: Tensor = passes.count_listed(values, groups, thresholds)
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
        written: tuple[Tensor, Tensor] = self._passes.write(
            scores, gt_classes, high, before, after, divisor, weight, dtype
        )
        return written

    def find(self, scores: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return plain.find(scores, gt_classes)

    def rank(self, keys: Tensor, num_lists: int, margin: float) -> Ranked:
        return self._host.rank(keys, num_lists, margin)

    def move(self, ranked: Ranked, lambda_: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        return self._host.move(ranked, lambda_, slope)

    def argsort(self, values: Tensor, bounds: Tensor) -> Tensor:
        return self._host.argsort(values, bounds)

    def highest(
        self, scores: Tensor, gt_classes: Tensor, thresholds: Thresholds | None, size: int
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._passes.highest(scores, gt_classes, thresholds, size)
        return found
