"""What a run shows in the terminal: a progress bar, and less than its log file has."""

import argparse
import copy
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from logging.handlers import MemoryHandler
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.engine import HookBase, default_setup
from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile
from tqdm.contrib.logging import logging_redirect_tqdm

from .keys import Keys, set_value, value

#: How the messages begin in which Detectron2 logs config and model, hundreds of lines.
_DUMPS = ("Contents of args.config_file=", "Running with full config:", "Model:\n")
_held = MemoryHandler(sys.maxsize, sys.maxsize)
_SMOOTHED_OVER = 20  # iterations, as Detectron2's periodic lines


def set_up(cfg: Any, keys: Keys, args: argparse.Namespace) -> None:
    """Detectron2's ``default_setup``, with config and model in the log file alone.

    In the terminal they would drown the warnings. Of an evaluation (``args.eval_only``) log and
    config go beside the detections, as the folder's own are those of the training. The logger of
    this package then writes where Detectron2's does.
    """
    folder = value(cfg, keys.folder)
    if args.eval_only:
        folder, cfg = os.path.join(folder, "inference"), copy.deepcopy(cfg)
        set_value(cfg, keys.folder, folder)
    rank = comm.get_rank()
    # default_setup's own call: Detectron2 remembers it and makes no second handler there.
    for handler in _to_terminal(setup_logger(folder, distributed_rank=rank)):
        handler.addFilter(lambda record: not str(record.msg).startswith(_DUMPS))
    default_setup(cfg, args)
    logger = setup_logger(folder, distributed_rank=rank, name="rambo_det")
    _give_held_to(logger)
    device, about = value(cfg, keys.device), f"{torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        about = torch.cuda.get_device_name(torch.device(device))
    logger.info("Device: %s (%s)", device, about)


@contextmanager
def held_until_set_up() -> Iterator[None]:
    """Keeps what the package logs for :func:`set_up`, so that the run's log file has it too.

    Data are read, and warned of, before it is known in which folder the run is. After an error it
    is shown at once.
    """
    logger = logging.getLogger("rambo_det")
    logger.setLevel(logging.INFO)
    logger.addHandler(_held)
    try:
        yield
    except BaseException:
        logger.removeHandler(_held)
        _give_held_to(logger)
        raise
    logger.removeHandler(_held)


def _give_held_to(logger: logging.Logger) -> None:
    _held.setTarget(logger)  # type: ignore[arg-type]  # which has handle() as a handler does
    _held.flush()


def _to_terminal(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers of the logger that write to standard output or error."""
    streams = (sys.stdout, sys.stderr)
    return [h for h in logger.handlers if getattr(h, "stream", None) in streams]


class ProgressBar(HookBase):
    """Shows iteration, time left, loss and the last AP in one line of the terminal.

    It stands in for Detectron2's periodic lines there; log files have these all the same. All other
    output appears above it. Without a terminal that can redraw a line, or with TQDM_DISABLE=1, it
    does nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._undo = ExitStack()

    def before_train(self) -> None:
        watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if not (comm.is_main_process() and watched):
            return
        bar = tqdm(
            desc="train", initial=self.trainer.start_iter, total=self.trainer.max_iter, unit="it",
            file=sys.stdout, dynamic_ncols=shutil.get_terminal_size((0, 0)).columns > 0,
        )  # fmt: skip
        if bar.disable:
            return
        self._bar = bar
        self._undo.callback(bar.close)
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "rambo_det")]
        loggers = [logger for logger in loggers if _to_terminal(logger)]
        for handler in [h for logger in loggers for h in _to_terminal(logger)]:
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
        storage, shown = self.trainer.storage, {}
        if "total_loss" in storage.histories():
            shown["loss"] = f"{storage.history('total_loss').median(_SMOOTHED_OVER):.3g}"
        latest = storage.latest().items()
        shown.update({k: f"{v:.1f}" for k, (v, _) in latest if k.endswith("bbox/AP")})
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._undo.close()
        self._bar = None


def _is_not_periodic(record: logging.LogRecord) -> bool:
    # What Detectron2 logs every 20 iterations, and the bar tells too.
    return record.name != "detectron2.utils.events"
