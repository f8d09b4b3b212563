"""What a run shows in the terminal."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

#: How the messages begin in which Detectron2 logs config and model, hundreds of lines.
_DUMPS = ("Contents of args.config_file=", "Running with full config:", "Model:\n")


def set_up(cfg: Any, args: argparse.Namespace, folder: str) -> logging.Logger:
    """Detectron2's ``default_setup``, with config and model in the log file alone.

    In the terminal they would drown the warnings. Of an evaluation (``args.eval_only``) log and
    config go beside the detections, as the folder's own are those of the training.

    Args:
        cfg, args: as those of ``default_setup``.
        folder: of the run, as ``cfg`` has it.

    Returns:
        The logger of this package, which writes where Detectron2's does.
    """
    if args.eval_only and folder:
        cfg, folder = _in_folder(cfg, os.path.join(folder, "inference"))
    rank = comm.get_rank()
    # default_setup's own call: Detectron2 remembers it and makes no second handler there.
    for handler in to_terminal(setup_logger(folder, distributed_rank=rank)):
        handler.addFilter(_is_no_dump)
    default_setup(cfg, args)
    return setup_logger(folder, distributed_rank=rank, name="rambo_det")


def _in_folder(cfg: Any, folder: str) -> tuple[Any, str]:
    cfg = copy.deepcopy(cfg)
    if isinstance(cfg, CfgNode):
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
    else:
        cfg.train.output_dir = folder
    return cfg, folder


def to_terminal(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers of the logger that write to standard output or error."""
    streams = (sys.stdout, sys.stderr)
    return [h for h in logger.handlers if getattr(h, "stream", None) in streams]


def _is_no_dump(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_DUMPS)
