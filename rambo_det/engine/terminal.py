"""The terminal output of a run, which is shorter than its log file."""

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

from .keys import Keys, get_key, set_key

#: Beginnings of the messages of hundreds of lines in which Detectron2 logs config and model.
_DUMP_PREFIXES = ("Contents of args.config_file=", "Running with full config:", "Model:\n")
_held = MemoryHandler(sys.maxsize, sys.maxsize)


def setup_logging(cfg: Any, keys: Keys, args: argparse.Namespace) -> None:
    """Runs Detectron2's ``default_setup``; config and model appear only in the log file.

    In the terminal they would hide the warnings. An evaluation (``args.eval_only``) writes log and
    config beside its detections, because those in the run's folder belong to the training. The
    logger of this package writes to the same places as Detectron2's.
    """
    folder = get_key(cfg, keys.folder)
    if args.eval_only:
        folder, cfg = os.path.join(folder, "inference"), copy.deepcopy(cfg)
        set_key(cfg, keys.folder, folder)
    rank = comm.get_rank()
    # default_setup makes the same call. Detectron2 caches the result and adds no second handler.
    for handler in setup_logger(folder, distributed_rank=rank).handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(lambda record: not str(record.msg).startswith(_DUMP_PREFIXES))
    default_setup(cfg, args)
    logger = setup_logger(folder, distributed_rank=rank, name="rambo_det")
    _give_held_to(logger)
    device, details = get_key(cfg, keys.device), f"{torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        details = torch.cuda.get_device_name(torch.device(device))
    logger.info("Device: %s (%s)", device, details)


@contextmanager
def buffer_logs() -> Iterator[None]:
    """Buffers the package's log records until :func:`setup_logging`: the log file has them too.

    The package reads the data, and warns of problems, before it knows the run's folder. After an
    error, the records are shown at once.
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
    _held.setTarget(logger)  # a Logger has handle(), like a Handler
    _held.flush()
