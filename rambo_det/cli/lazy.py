"""``rambo-train`` for LazyConfigs; the main of tools/lazyconfig_train_net.py."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import train


def load_config(args: argparse.Namespace) -> Any:
    """Registers the data sets of the command line and gives the LazyConfig of the run.

    Args:
        args: ``config_file``, ``opts`` (``KEY=VALUE``), ``register_coco``, ``register_voc``,
            ``classes``.

    Raises:
        InputError: whatever is wrong with config, keys or data.
    """
    import torch
    from detectron2.config import LazyConfig

    from ..config_files import find_config
    from ..data.shapes import register_shapes
    from ..engine.best import LAZY_KEYS
    from ..engine.lazy import own_keys
    from ..engine.setup import check_dataset, check_own_trained_on, register_own
    from ..engine.values import check_best

    register_shapes()  # which the quickstart's configs name
    file = find_config(args.config_file)
    try:
        with warnings.catch_warnings():
            # Detectron2's model zoo, which the configs build on, imports it.
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            cfg = LazyConfig.load(file)
    except Exception as error:  # a LazyConfig is a program, which can fail in any way
        steps = traceback.extract_tb(error.__traceback__)
        line = next((f", line {s.lineno}" for s in reversed(steps) if s.filename == file), "")
        message = " ".join(str(error).split())
        raise InputError(f"{file}{line}: {type(error).__name__}: {message}") from error
    for node in ("model", "dataloader", "optimizer", "lr_multiplier", "train"):
        if node not in cfg:
            raise InputError(f"{file} is not a LazyConfig of a training: it has no {node!r}")
    for key, value in own_keys().items():
        cfg.train.setdefault(key, value)
    _override(cfg, args.opts)
    training, test = (_names(cfg.dataloader[s].dataset.names) for s in ("train", "test"))
    key = "dataloader.train.dataset.names"
    check_own_trained_on(args, key, training, test, f"{key}={{}}")
    if cfg.train.device.startswith("cuda") and not torch.cuda.is_available():
        cfg.train.device = "cpu"
    classes = register_own(args, training)
    if classes is not None:
        node = cfg.model.roi_heads if "roi_heads" in cfg.model else cfg.model
        node.num_classes = len(classes)
    for split, names in (("train", training), ("test", test)):
        for name in names:
            check_dataset(f"dataloader.{split}.dataset.names", name)
    node = cfg.train
    if not args.eval_only:
        check_best(
            node.keep_best, node.best_metric, node.patience, node.eval_period,
            test[:1],  # they are evaluated as one
            LAZY_KEYS,
        )  # fmt: skip
    return cfg


def _names(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _override(cfg: Any, opts: list[str]) -> None:
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    for opt in opts:
        key, equals, _ = opt.partition("=")
        if opt.startswith("--"):
            raise InputError(f"options come before the config keys: {opt}")
        if not equals:
            raise InputError(f"config keys come as KEY=VALUE, got {opt!r}")
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else None
        # A model takes arguments that its config does not name; everything else is listed there.
        if not OmegaConf.is_config(node) or (leaf not in node and not key.startswith("model.")):
            raise InputError(f"unknown config key {key}")
        before = OmegaConf.select(cfg, key)
        try:
            LazyConfig.apply_overrides(cfg, [opt])
        except Exception as error:  # hydra's parser has errors of its own, of no common type
            raise InputError(f"{opt}: {' '.join(str(error).split())}") from error
        if isinstance(before, (int, float)) and not isinstance(
            OmegaConf.select(cfg, key), (int, float)
        ):
            raise InputError(f"{key} must be a number or a truth value, as {before!r}, got {opt!r}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process of a run: training and evaluation, or evaluation alone."""
    import detectron2.utils.comm as comm

    from ..engine.console import set_up
    from ..engine.lazy import LazyRun, settle_seed
    from ..engine.saved import write_data
    from ..engine.setup import check_same_classes, prepare_folder

    cfg = load_config(args)
    folder, weights = cfg.train.output_dir, cfg.train.init_checkpoint
    if weights and not args.resume and "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"train.init_checkpoint {weights}: no such file")
    # The base configs name weights to start from: only those of the command line are meant here.
    named = weights if any(opt.startswith("train.init_checkpoint=") for opt in args.opts) else ""
    evaluated = (named or _last_checkpoint(folder)) if args.eval_only else ""
    train_names, test_names = (_names(cfg.dataloader[s].dataset.names) for s in ("train", "test"))
    if args.eval_only and not named:
        check_same_classes("--eval-only", Path(folder), test_names)
    elif args.resume and not args.eval_only:
        check_same_classes("--resume", Path(folder), train_names[:1])
    settle_seed(cfg, args.resume)
    aside = None
    if comm.is_main_process() and not args.eval_only:
        aside = prepare_folder(Path(folder), args.resume, args.fresh, "train.output_dir=FOLDER")
    comm.synchronize()
    logger = set_up(cfg, args, folder)
    if aside:
        logger.info("The earlier run in %s is now in %s", folder, aside)
    lazy = LazyRun(cfg)
    if comm.is_main_process() and not args.eval_only:
        write_data(folder, args, train_names, test_names)
    results = lazy.evaluate_checkpoint(evaluated) if args.eval_only else lazy.train(args.resume)
    if comm.is_main_process():
        print(f"\n{train.result_table(results)}\n\ncheckpoint: {lazy.checkpoint}")
        if best := lazy.best and lazy.best.summary():
            print(best)
    return results


def _last_checkpoint(folder: str) -> str:
    from ..engine.checkpointer import last_checkpoint

    file = last_checkpoint(folder)
    if file is None:
        raise InputError(
            f"--eval-only: no checkpoint in train.output_dir {folder}: "
            "name one with train.init_checkpoint=FILE"
        )
    return str(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 2 after a user's mistake."""
    return train.main(argv, run)


if __name__ == "__main__":
    sys.exit(main())
