"""What a training does beside its steps: seeds, the best checkpoint, numbers of evaluations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from ..errors import InputError
from .checkpointer import BEST, AtomicCheckpointer
from .files import whole_file
from .keys import Keys, value
from .loader import ResumableLoader
from .seeds import STEP, seed_generators
from .terminal import ProgressBar


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


class WriteEvaluations(HookBase):
    """Writes the numbers of every evaluation into metrics.json and TensorBoard.

    The event storage keeps the latest ones alone: of evaluations that lie closer together than the
    period of Detectron2's PeriodicWriter, 20 iterations, all but the last would be lost.

    To be registered after the hook that evaluates.

    Args:
        writers: those of the PeriodicWriter; none in processes other than the main one.
        period: of the evaluations, in iterations; < 1: none.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        # What is printed keeps its pace: evaluators print their numbers themselves.
        self._writers = [w for w in writers if not isinstance(w, CommonMetricPrinter)]
        self._period = period

    def before_step(self) -> None:
        # BestCheckpointer may have evaluated before the first step.
        if self.trainer.iter == self.trainer.start_iter > 0:
            self._write()

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._write()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


class StoppedEarly(BaseException):
    """Ends a training that has stopped improving.

    No Exception, which Detectron2's trainers log as a failure; they do end in good order.
    """


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook with patience, in every process, and resumable.

    Every evaluation's value is in ``best.json``, apart from the checkpoints: one of the same
    iteration is written before the evaluation. A run that is resumed goes on with those up to its
    checkpoint, and makes up for the one that a kill cut off.

    To be registered in every process, after the hooks that evaluate and write.

    Args:
        checkpointer: of the run.
        evaluate: gives the metrics; for an evaluation that was cut off.
        period: of the evaluations, in iterations, > 0.
        metric: name of the metric, as in ``metrics.json``; higher is better.
        keep: whether to write ``model_best.pth``.
        patience: end after that many evaluations in a row without a better one; 0: never.
        key: of the config that names the metric, for messages.
    """

    def __init__(
        self,
        checkpointer: AtomicCheckpointer,
        evaluate: Callable[[], Any],
        *,
        period: int,
        metric: str,
        keep: bool = True,
        patience: int = 0,
        key: str = "RAMBO_TRAIN.BEST_METRIC",
    ) -> None:
        super().__init__(period, checkpointer, metric)
        self._evaluate, self._keep, self._patience, self._key = evaluate, keep, patience, key
        self._file = Path(checkpointer.save_dir) / "best.json"
        self._values: dict[int, float | None] = {}  # None: not a number

    @property
    def best(self) -> tuple[int, float] | None:
        """Iteration, counted from 0, and value of the best evaluation; the first of equal ones."""
        values = [(i, v) for i, v in self._values.items() if v is not None]
        return max(values, key=lambda item: (item[1], -item[0]), default=None)

    def before_train(self) -> None:
        start, storage = self.trainer.start_iter, self.trainer.storage
        self._values = comm.all_gather(self._read(start))[0]
        missed = start > 0 and start % self._period == 0 and start - 1 not in self._values
        # As after the step that was the last one, which a checkpoint tells to be done.
        self.trainer.iter = storage.iter = start - 1
        if missed and start < self.trainer.max_iter:
            self._logger.info("Evaluating iteration %d, which was cut off", start - 1)
            results = flatten_results_dict(self._evaluate() or {})
            storage.put_scalars(**results, smoothing_hint=False)
            self._note(start - 1)
        if start - 1 in self._values:
            self._end_if_it_is_time(start - 1)
        self.trainer.iter = storage.iter = start

    def _best_checking(self) -> None:
        """What the base class calls after each evaluation."""
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._note(iteration)
        self._end_if_it_is_time(iteration)

    def after_train(self) -> None:
        super().after_train()
        del self._evaluate  # a method of the trainer, perhaps, which has this hook

    def _note(self, iteration: int) -> None:
        latest = {k: v for k, (v, _) in self.trainer.storage.latest().items()}
        latest = comm.all_gather(latest)[0]  # evaluators give their numbers to the main process
        if self._val_metric not in latest:
            there = sorted(k for k in latest if "/AP" in k and not k.startswith("rambo"))
            raise InputError(
                f"{self._key} {self._val_metric!r} is not among the metrics of the evaluation: "
                f"{', '.join(there)}"
            )
        value = float(latest[self._val_metric])
        self._values[iteration] = value if value == value else None
        if self._keep and self.best is not None and self.best[0] == iteration:
            self._checkpointer.save(BEST, iteration=iteration)
        if comm.is_main_process():  # after the weights: a kill in between has it made again
            best = self.best and {"iteration": self.best[0], "value": self.best[1]}
            content = {"metric": self._val_metric, "best": best, "evaluations": self._values}
            with whole_file(str(self._file), "w") as file:
                json.dump(content, file, indent=1)

    def _end_if_it_is_time(self, iteration: int) -> None:
        since = -1 if self.best is None else self.best[0]
        waited = sum(since < i <= iteration for i in self._values)
        if not self._patience or waited < self._patience or iteration + 1 >= self.trainer.max_iter:
            return
        self._checkpointer.save("model_final", iteration=iteration)
        raise StoppedEarly(
            f"Stopped early, after iteration {iteration}: {waited} evaluations without a better "
            f"{self._val_metric}"
        )

    def _read(self, start: int) -> dict[int, float | None]:
        """The evaluations before iteration ``start`` of the run in the folder."""
        if not start or not self._file.is_file():
            return {}
        try:
            content = json.loads(self._file.read_text())
            values = {int(i): v for i, v in content["evaluations"].items() if int(i) < start}
            return values if content["metric"] == self._val_metric else {}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{self._file} is not what a training wrote ({error}): remove it, and the best "
                "evaluation is sought anew"
            ) from error

    def summary(self) -> str | None:
        """The best evaluation in one line, with the file that has its weights; None: there is none.

        A run that was killed and resumed may have no such file: the one that is there can be of an
        evaluation after the checkpoint, which came out otherwise the second time.
        """
        if self.best is None:
            return None
        iteration, value = self.best
        line = f"best {self._val_metric}: {value:.3f}, after iteration {iteration}"
        file = os.path.join(self._checkpointer.save_dir, f"{BEST}.pth")
        if not self._keep or not os.path.isfile(file):
            return line
        # This run's own file, whatever a user's hooks have put into it.
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        return f"{line}: {file}" if content.get("iteration") == iteration else line


def training_hooks(
    cfg: Any,
    keys: Keys,
    checkpointer: AtomicCheckpointer,
    evaluate: Callable[[], Any],
    writers: Sequence[EventWriter],
    log_period: int = 20,
    **periodic: Any,
) -> list[HookBase | None]:
    """What saves, evaluates and writes, for a config of either kind, in the order of Detectron2's.

    Args:
        cfg, keys: of the run.
        checkpointer: of the run.
        evaluate: gives the metrics of the model as it is.
        writers: of events; none in processes other than the main one.
        log_period: of the writers, in iterations.
        **periodic: ``period`` and perhaps ``max_to_keep``, as those of PeriodicCheckpointer.

    Returns:
        The hooks; the last one keeps the best evaluation, or is None.
    """
    names = (keys.period, keys.metric, keys.keep, keys.patience)
    period, metric, keep, patience = (value(cfg, name) for name in names)
    if not comm.is_main_process():  # all take part in a checkpoint, one removes old ones
        periodic.pop("max_to_keep", None)
    best = None
    if period > 0 and (keep or patience):
        best = BestCheckpointer(
            checkpointer, evaluate,
            period=period, metric=metric, keep=keep, patience=patience, key=keys.metric,
        )  # fmt: skip
    return [
        hooks.PeriodicCheckpointer(checkpointer, **periodic),
        hooks.EvalHook(period, evaluate),
        hooks.PeriodicWriter(writers, period=log_period),
        ProgressBar(),
        WriteEvaluations(writers, period),
        best,
    ]
