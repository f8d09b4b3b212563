"""The score memories of several processes in the checkpoint that one of them writes."""

from __future__ import annotations

from detectron2.engine import HookBase
from torch import nn

from ..core import ScoreMemory


def collect_memories(model: nn.Module) -> None:
    """Has each process hand its share of the memories to the one that saves next; a collective."""
    for module in model.modules():
        if isinstance(module, ScoreMemory):
            module.collect()


class CollectMemories(HookBase):
    """Has every process hand its share of the memories to the one that saves.

    To be registered in every process, before the PeriodicCheckpointer of the main one.

    Args:
        period: of the checkpoints, in iterations; the last one is saved as well.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            collect_memories(self.trainer.model)
