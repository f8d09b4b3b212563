"""The numbers of every evaluation in metrics.json and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventWriter


class WriteEvaluations(HookBase):
    """Has the numbers of an evaluation written after the step in which it was made.

    The event storage keeps the latest ones alone: of evaluations that lie closer together than the
    period of Detectron2's PeriodicWriter, 20 iterations, all but the last were lost.

    To be registered after the hook that evaluates; that calls :meth:`evaluated`.

    Args:
        writers: those of the PeriodicWriter; none in processes other than the main one.
    """

    def __init__(self, writers: Sequence[EventWriter]) -> None:
        # What is printed keeps its pace: evaluators print their numbers themselves.
        self._writers = [w for w in writers if not isinstance(w, CommonMetricPrinter)]
        self._due = False

    def evaluated(self) -> None:
        """Takes note of an evaluation, whose numbers are about to be put into the storage."""
        self._due = True

    def after_step(self) -> None:
        if self._due:
            for writer in self._writers:
                writer.write()
        self._due = False
