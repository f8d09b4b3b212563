"""Hooks of a training: seeds of the steps, evaluations, the best checkpoint, early stopping."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from ..errors import InputError
from .checkpointer import BEST_NAME, AtomicCheckpointer, load_checkpoint
from .files import atomic_write, drop_unfinished_line
from .keys import Keys, dataset_names, get_key
from .loader import ResumableLoader
from .seeds import STEP, seed_generators

logger = logging.getLogger(__name__)


class SeedHook(HookBase):
    """Hook that makes a step's random numbers and batch depend only on seed, iteration and rank.

    ``loader`` is the trainer's data loader. The hook sets where a ResumableLoader starts.
    """

    def __init__(self, seed: int, loader: Any) -> None:
        self._seed, self._loader = seed, loader
        if not isinstance(loader, ResumableLoader):
            logger.warning(
                "The training loader is no ResumableLoader: on --resume its data start from the "
                "beginning"
            )

    def before_train(self) -> None:
        if isinstance(self._loader, ResumableLoader):
            self._loader.start = self.trainer.start_iter

    def before_step(self) -> None:
        seed_generators(self._seed, STEP, self.trainer.iter, comm.get_rank())


class EarlyStop(BaseException):
    """Ends a training that has stopped improving; ``after_train`` hooks still run.

    This class is no Exception, because Detectron2's trainers log an Exception as a failure.
    """


class BestEvalHook(hooks.EvalHook):
    """EvalHook that also saves the best checkpoint, stops early and supports --resume.

    Metrics are written after each evaluation: the event storage has only the latest ones. The value
    to maximize is in ``best.json``, because the checkpoint of an iteration is written before its
    evaluation. A resumed run takes over the evaluations up to its checkpoint and repeats one that
    was killed. Register this hook in every process, after the hook that saves checkpoints. Only the
    main process has ``writers`` of events.
    """

    def __init__(
        self,
        cfg: Any,
        keys: Keys,
        evaluate: Callable[[], Any],
        checkpointer: AtomicCheckpointer,
        writers: Sequence[EventWriter] = (),
    ) -> None:
        super().__init__(get_key(cfg, keys.eval_period), self._evaluate)
        self._evaluator = evaluate
        self.results: Any = None  # of the last evaluation
        # The metric printer is left out: evaluators print their metrics themselves.
        self._writers = [w for w in writers if not isinstance(w, CommonMetricPrinter)]
        self._checkpointer, self._key, self._max_iter = checkpointer, keys.metric, keys.max_iter
        self._metric, self._keep = get_key(cfg, keys.metric), get_key(cfg, keys.keep_best)
        self._patience = get_key(cfg, keys.patience)
        self._data = dataset_names(cfg, keys.test_sets)
        self._tracks_best = self._period > 0 and bool(self._keep or self._patience)
        self._file = Path(checkpointer.save_dir) / "best.json"
        self._values: dict[int, float | None] = {}  # iteration -> metric; None: nan

    @property
    def best(self) -> tuple[int, float] | None:
        """Iteration (from 0) and value of the best evaluation, the first of equal ones, or None."""
        values = [(i, v) for i, v in self._values.items() if v is not None]
        return max(values, key=lambda item: (item[1], -item[0]), default=None)

    def before_train(self) -> None:
        start, storage = self.trainer.start_iter, self.trainer.storage
        if start >= self.trainer.max_iter:
            text = "The run has already made %d iterations, and %s is %d: it is only evaluated"
            logger.warning(text, start, self._max_iter, self.trainer.max_iter)
        if not self._tracks_best or start == 0:
            return
        saved = json.loads(self._file.read_text()) if self._file.is_file() else {}
        same = saved.get("metric") == self._metric and saved.get("data", self._data) == self._data
        evaluations = saved["evaluations"] if same else {}
        values = {int(i): value for i, value in evaluations.items() if int(i) < start}
        self._values = comm.all_gather(values)[0]
        # The calls below expect the state right after the last step before the checkpoint.
        self.trainer.iter = storage.iter = start - 1
        if start - 1 in self._values:
            self._stop_if_out_of_patience(start - 1)
        elif start % self._period == 0 and start < self.trainer.max_iter:
            logger.info("Repeating the interrupted evaluation after iteration %d", start - 1)
            self._do_eval()
        self.trainer.iter = storage.iter = start

    def _evaluate(self) -> Any:
        self.results = self._evaluator()
        return self.results

    def _do_eval(self) -> None:
        super()._do_eval()
        for writer in self._writers:
            writer.write()
        if not self._tracks_best:
            return
        # The run may resume from a checkpoint beyond max_iter.
        end = max(self.trainer.max_iter, self.trainer.start_iter)
        iteration = min(self.trainer.iter, end - 1)
        # Evaluators return metrics only in the main process.
        found = comm.all_gather(flatten_results_dict(self.results or {}))[0]
        # Without detections, COCOEvaluator leaves out masks, keypoints and the single classes.
        is_empty = any(k.endswith("bbox/AP") and math.isnan(v) for k, v in found.items())
        if self._metric not in found and not is_empty:
            names, problem = ", ".join(sorted(found)), "is not a metric of the evaluation"
            problem = f"{self._key} {self._metric!r} {problem}; available: {names or 'none'}"
            if self._patience or self._metric != "bbox/AP":
                raise InputError(problem)
            # A user's own evaluator, and the default, which the user did not choose.
            logger.warning("%s. So no best checkpoint is kept", problem)
            self._tracks_best = False
            return
        value = float(found.get(self._metric, math.nan))
        self._values[iteration] = None if math.isnan(value) else value
        if self._keep and self.best is not None and self.best[0] == iteration:
            self._checkpointer.save(BEST_NAME, iteration=iteration)
        if comm.is_main_process():  # last: after a kill before this, the evaluation is repeated
            best = self.best and {"iteration": self.best[0], "value": self.best[1]}
            content = {"metric": self._metric, "data": self._data, "best": best}
            content["evaluations"] = self._values
            with atomic_write(str(self._file), "w") as file:
                json.dump(content, file, indent=1)
        self._stop_if_out_of_patience(iteration)

    def _stop_if_out_of_patience(self, iteration: int) -> None:
        since = -1 if self.best is None else self.best[0]
        waited = sum(since < i <= iteration for i in self._values)
        if not self._patience or waited < self._patience or iteration + 1 >= self.trainer.max_iter:
            return
        self._checkpointer.save("model_final", iteration=iteration)
        text = "Stopped early, after iteration %d: %d evaluations without a better %s"
        logger.info(text, iteration, waited, self._metric)
        raise EarlyStop

    def summary(self) -> str | None:
        """Returns a line about the best evaluation and the file of its weights; None without one.

        The line names no file if model_best.pth is of another evaluation: a killed run may have
        saved it after its last checkpoint, and the repeated evaluation may give another value.
        """
        if self.best is None:
            return None
        iteration, best = self.best
        line = f"best {self._metric}: {best:.3f}, after iteration {iteration}"
        file = self._file.with_name(f"{BEST_NAME}.pth")
        is_saved = self._keep and file.is_file()
        is_best = is_saved and load_checkpoint(file).get("iteration") == iteration
        return f"{line}: {file}" if is_best else line


def training_hooks(
    cfg: Any,
    keys: Keys,
    checkpointer: AtomicCheckpointer,
    evaluate: Callable[[], Any],
    writers: Sequence[EventWriter],
    log_period: int = 20,
    **periodic: Any,
) -> tuple[HookBase, BestEvalHook, HookBase]:
    """Returns hooks that save, evaluate and write, in Detectron2's order, for both kinds of config.

    ``log_period`` is the period of the writers, in iterations. ``periodic`` has the arguments of
    PeriodicCheckpointer: ``period`` and optionally ``max_to_keep``.
    """
    if comm.is_main_process():
        drop_unfinished_line(str(Path(checkpointer.save_dir, "metrics.json")))  # left by a kill
    else:  # all processes save checkpoints, one deletes old ones
        periodic.pop("max_to_keep", None)
    return (
        hooks.PeriodicCheckpointer(checkpointer, **periodic),
        BestEvalHook(cfg, keys, evaluate, checkpointer, writers),
        hooks.PeriodicWriter(writers, period=log_period),
    )
