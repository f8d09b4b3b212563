"""The score memories of several processes in the checkpoint that one of them writes."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from torch import nn

from ..losses import ScoreMemory


def collect_memories(model: nn.Module) -> None:
    """Has what all processes remember be in the state dict that is taken next; a collective."""
    for module in model.modules():
        if isinstance(module, ScoreMemory):
            module.all_gather_for_checkpoint()


class CollectMemories(HookBase):
    """Has every process hand its share of the memories to the one that saves.

    To be registered in every process, before the PeriodicCheckpointer of the main one.

    Args:
        period: of the checkpoints, in iterations; the last one is saved as well.
        checkpointer: an :class:`.checkpointer.AtomicCheckpointer`, of which there is more to
            collect than the memories; None: another one.
    """

    def __init__(self, period: int, checkpointer: Any = None) -> None:
        self._period = period
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            if self._checkpointer is None:
                collect_memories(self.trainer.model)
            else:
                self._checkpointer.collect()
