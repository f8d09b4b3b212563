"""The score memories of all processes in the checkpoint that one of them writes."""

from detectron2.engine import HookBase
from torch import nn

from ..losses import ScoreMemory


def collect_memories(model: nn.Module) -> None:
    """Makes the next state dict hold what all processes remember; a collective."""
    for module in model.modules():
        if isinstance(module, ScoreMemory):
            module.all_gather_for_checkpoint()


class CollectMemories(HookBase):
    """:func:`collect_memories` for a trainer whose checkpoints are saved by the main process alone.

    Register it in every process, before the PeriodicCheckpointer of the main one; ``period`` is
    that of the checkpoints, in iterations. Those of :class:`.checkpointer.AtomicCheckpointer` do
    without.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            collect_memories(self.trainer.model)
