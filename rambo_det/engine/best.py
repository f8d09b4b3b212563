"""The best evaluation of a run: its weights are kept, and a run that stopped improving ends."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import detectron2.utils.comm as comm
import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict

from ..errors import InputError
from .checkpointer import AtomicCheckpointer
from .files import whole_file

logger = logging.getLogger(__name__)


class BestKeys(NamedTuple):
    """How a kind of config calls what :class:`BestModel` is told, and what is evaluated."""

    keep: str
    metric: str
    patience: str
    period: str
    tests: str


YAML_KEYS = BestKeys(
    "RAMBO_TRAIN.KEEP_BEST", "RAMBO_TRAIN.BEST_METRIC", "RAMBO_TRAIN.PATIENCE",
    "TEST.EVAL_PERIOD", "DATASETS.TEST",
)  # fmt: skip
LAZY_KEYS = BestKeys(
    "train.keep_best", "train.best_metric", "train.patience", "train.eval_period",
    "dataloader.test.dataset.names",
)  # fmt: skip


class StoppedEarly(BaseException):
    """Ends a training that has stopped improving.

    No Exception, which Detectron2's trainers log as a failure; they do end in good order.
    """


class BestModel(HookBase):
    """Keeps the weights of the best evaluation, and ends the training if told to.

    Every evaluation's value of the metric is in ``best.json``, apart from the checkpoints: one of
    the same iteration is written before the evaluation. A run that is resumed goes on with those
    up to its checkpoint, and makes up for the one that a kill cut off.

    To be registered in every process, after the hooks that evaluate and write. Whoever evaluates
    calls :meth:`evaluated`.

    Args:
        metric: name of the metric, as in ``metrics.json``; higher is better.
        keep: whether to write ``model_best.pth``.
        patience: end after that many evaluations in a row without a better one; 0: never.
        period: of the evaluations, in iterations, > 0.
        checkpointer: of the run.
        evaluate: evaluates and calls :meth:`evaluated`; for an evaluation that was cut off.
        keys: names for messages.
    """

    def __init__(
        self, metric: str, keep: bool, patience: int, period: int,
        checkpointer: AtomicCheckpointer, evaluate: Callable[[], Any], keys: BestKeys = YAML_KEYS,
    ) -> None:  # fmt: skip
        self._metric, self._keep, self._patience, self._period = metric, keep, patience, period
        self._checkpointer, self._evaluate, self._keys = checkpointer, evaluate, keys
        self._file = Path(checkpointer.save_dir) / "best.json"
        self._values: dict[int, float] = {}

    @property
    def best(self) -> tuple[int, float] | None:
        """Iteration, counted from 0, and value of the best evaluation; the first of equal ones."""
        values = {i: v for i, v in self._values.items() if not math.isnan(v)}
        return max(values.items(), key=lambda item: (item[1], -item[0]), default=None)

    def evaluated(self, results: dict[str, Any] | None) -> None:
        """Takes note of an evaluation; a collective.

        Args:
            results: of the evaluators; what is given in the main process counts.

        Raises:
            InputError: the metric is not among them.
        """
        metrics = comm.all_gather(flatten_results_dict(results or {}))[0]
        if self._metric not in metrics:
            raise InputError(
                f"{self._keys.metric} {self._metric!r} is not among the metrics of the "
                f"evaluation: {', '.join(sorted(metrics))}"
            )
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._values[iteration] = float(metrics[self._metric])
        if self._keep and self.best is not None and self.best[0] == iteration:
            self._checkpointer.collect()
            self._checkpointer.save("model_best", tag=False, iteration=iteration)
        self._write()  # after the weights: a kill in between lets the evaluation be made again

    def before_train(self) -> None:
        start = self.trainer.start_iter
        self._values = comm.all_gather(self._read(start))[0]
        missed = start > 0 and start % self._period == 0 and start - 1 not in self._values
        storage = self.trainer.storage
        # As after the step that was the last one, which a checkpoint tells to be done.
        self.trainer.iter = storage.iter = start - 1
        if missed and start < self.trainer.max_iter:
            logger.info("Evaluating iteration %d, which the earlier process did not", start - 1)
            results = self._evaluate()
            storage.put_scalars(**flatten_results_dict(results or {}), smoothing_hint=False)
        if start - 1 in self._values:
            self._end_if_it_is_time(start - 1)
        self.trainer.iter = storage.iter = start

    def after_step(self) -> None:
        if self.trainer.iter in self._values:
            self._end_if_it_is_time(self.trainer.iter)

    def after_train(self) -> None:
        del self._evaluate  # a method of the trainer, perhaps, which has this hook

    def _end_if_it_is_time(self, iteration: int) -> None:
        since = -1 if self.best is None else self.best[0]
        waited = sum(since < i <= iteration for i in self._values)
        if not self._patience or waited < self._patience or iteration + 1 >= self.trainer.max_iter:
            return
        self._checkpointer.collect()
        self._checkpointer.save("model_final", iteration=iteration)
        raise StoppedEarly(
            f"Stopped early, after iteration {iteration}: {waited} evaluations without a better "
            f"{self._metric}"
        )

    def _read(self, start: int) -> dict[int, float]:
        """The evaluations before iteration ``start`` of the run in the folder."""
        try:
            content = json.loads(self._file.read_text()) if start else {}
            if content.get("metric") != self._metric:
                return {}
            values = {int(i): v for i, v in content["evaluations"].items() if int(i) < start}
            return {i: math.nan if v is None else float(v) for i, v in values.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{self._file} is not what a training wrote ({error}): remove it, and the best "
                "evaluation is sought anew"
            ) from error

    def _write(self) -> None:
        if not comm.is_main_process():
            return
        best = self.best and {"iteration": self.best[0], "value": self.best[1]}
        values = {i: None if math.isnan(v) else v for i, v in sorted(self._values.items())}
        content = {"metric": self._metric, "best": best, "evaluations": values}
        with whole_file(str(self._file), "w") as file:
            json.dump(content, file, indent=1)

    def summary(self) -> str | None:
        """The best evaluation in one line, with the file that has its weights; None: there is none.

        A run that was killed and resumed may have no such file: the one that is there can be of an
        evaluation after the checkpoint, which came out otherwise the second time.
        """
        if self.best is None:
            return None
        iteration, value = self.best
        file = Path(self._checkpointer.save_dir) / "model_best.pth"
        place = f": {file}" if self._keep and _iteration_of(file) == iteration else ""
        return f"best {self._metric}: {value:.3f}, after iteration {iteration}{place}"


def _iteration_of(checkpoint: Path) -> int | None:
    if not checkpoint.is_file():
        return None
    # This run's own file, whatever a user's hooks have put into it.
    content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)
    iteration: int | None = content.get("iteration")
    return iteration
