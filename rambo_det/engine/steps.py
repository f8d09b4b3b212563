"""Training steps that are the same whether a run was interrupted or not."""

from __future__ import annotations

from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import HookBase

from .loader import ResumableLoader
from .seeds import STEP, seed_generators


class SeededSteps(HookBase):
    """Makes what a step draws, and its batch, depend on the seed and the iteration alone.

    Args:
        seed: of the run.
        loader: what the trainer reads; a :class:`.loader.ResumableLoader` is told where to start.
    """

    def __init__(self, seed: int, loader: Any) -> None:
        self._seed = seed
        self._loader = loader

    def before_train(self) -> None:
        if isinstance(self._loader, ResumableLoader):
            self._loader.start = self.trainer.start_iter

    def before_step(self) -> None:
        seed_generators(self._seed, STEP, self.trainer.iter, comm.get_rank())
