"""What a run shows in the terminal: less than its log file has."""

import argparse
import copy
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from .keys import Keys, set_value, value

#: How the messages begin in which Detectron2 logs config and model, hundreds of lines.
_DUMPS = ("Contents of args.config_file=", "Running with full config:", "Model:\n")
_held = MemoryHandler(sys.maxsize, sys.maxsize)


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
    for handler in setup_logger(folder, distributed_rank=rank).handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
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
