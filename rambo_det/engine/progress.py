"""A progress bar with the time left, where a training is watched in a terminal."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile
from tqdm.contrib.logging import logging_redirect_tqdm

from .console import to_terminal

_LOGGERS = ("detectron2", "fvcore", "rambo_det")
#: What Detectron2 logs every 20 iterations, and the bar tells too.
_PERIODIC = "detectron2.utils.events"
_SMOOTHED_OVER = 20  # iterations, as Detectron2's lines


def watched() -> bool:
    """Whether somebody may be looking: standard output is a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"


class ProgressBar(HookBase):
    """Shows iteration, time left, loss and the last AP in one line of the terminal.

    It stands in for Detectron2's periodic lines there; log files have these all the same. All other
    output appears above it. Without a terminal, or with TQDM_DISABLE=1, it does nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._undo = ExitStack()
        self._results: dict[str, float] = {}

    def evaluated(self, results: dict[str, Any] | None) -> None:
        """Takes note of an evaluation, whose APs the bar shows from then on."""
        metrics = flatten_results_dict(results or {})
        self._results = {k: v for k, v in metrics.items() if k.endswith("bbox/AP")}

    def before_train(self) -> None:
        if not (comm.is_main_process() and watched()):
            return
        start, total = self.trainer.start_iter, self.trainer.max_iter
        bar = tqdm(
            desc="train", initial=start, total=total, unit="it", file=sys.stdout,
            dynamic_ncols=shutil.get_terminal_size((0, 0)).columns > 0, leave=True,
        )  # fmt: skip
        if bar.disable:
            return
        self._bar = bar
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        loggers = [logger for logger in loggers if to_terminal(logger)]
        for logger in loggers:
            for handler in to_terminal(logger):
                handler.addFilter(_is_not_periodic)
                self._undo.callback(handler.removeFilter, _is_not_periodic)
        self._undo.enter_context(logging_redirect_tqdm(loggers))
        # pycocotools and others print, torch warns.
        self._undo.enter_context(redirect_stdout(DummyTqdmFile(sys.stdout)))
        if sys.stderr.isatty():
            self._undo.enter_context(redirect_stderr(DummyTqdmFile(sys.stderr)))

    def after_step(self) -> None:
        if self._bar is None:
            return
        storage = self.trainer.storage
        shown = {}
        if "total_loss" in storage.histories():
            shown["loss"] = f"{storage.history('total_loss').median(_SMOOTHED_OVER):.3g}"
        shown.update({name: f"{value:.1f}" for name, value in self._results.items()})
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        if self._bar is not None:
            self._undo.close()
            self._bar.close()
            self._bar = None


def _is_not_periodic(record: logging.LogRecord) -> bool:
    return record.name != _PERIODIC
