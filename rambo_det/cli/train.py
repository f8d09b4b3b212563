"""``rambo-train``: train and evaluate a detector; the main of tools/train_net.py."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..config_files import find_config
from ..errors import InputError
from .failures import status_of

Process = Callable[[argparse.Namespace], dict[str, Any]]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that register a user's own data, for every tool that reads data sets."""
    parser.add_argument(
        "--register-coco", nargs=3, action="append", default=[],
        metavar=("NAME", "JSON", "IMAGE_DIR"), help="data in COCO format; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--register-voc", nargs=3, action="append", default=[], metavar=("NAME", "ROOT", "SPLIT"),
        help="data in Pascal VOC layout (ROOT/ImageSets/Main/SPLIT.txt); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="A,B,C", help="class names of that data; by default read from it"
    )


def add_hold_out(parser: argparse.ArgumentParser) -> None:
    """The option that sets training images aside."""
    parser.add_argument(
        "--hold-out", type=int, metavar="N",
        help="set one of every N training images aside and evaluate on those, not on DATASETS.TEST:"
        " to choose settings without looking at the test images",
    )  # fmt: skip


_LAZY_EXAMPLES = """
Examples:

Train on one machine:
    $ %(prog)s --num-gpus 8 --config FILE.py

Change some keys of the config:
    $ %(prog)s --config FILE.py train.init_checkpoint=weights.pth optimizer.lr=0.001
"""


def _refuse(message: str) -> NoReturn:
    raise InputError(message)


def parse_args(argv: Sequence[str] | None = None, lazy: bool = False) -> argparse.Namespace:
    """The arguments of Detectron2's own train_net.py, and those for a user's own data.

    Args:
        argv: the arguments; None: those of the command line.
        lazy: whether they are those of a LazyConfig, which names its data sets itself.
    """
    from detectron2.engine import default_argument_parser

    # Detectron2's examples are of a yaml config.
    parser = default_argument_parser(epilog=_LAZY_EXAMPLES if lazy else None)
    parser.error = _refuse  # one line, without the usage
    parser.add_argument(
        "--config", dest="config_file", default=argparse.SUPPRESS, metavar="FILE",
        help="the same as --config-file",
    )  # fmt: skip
    add_data_arguments(parser)
    if lazy:
        parser.set_defaults(hold_out=None)
    else:
        add_hold_out(parser)
    parser.add_argument(
        "--fresh", action="store_true",
        help="start anew in an OUTPUT_DIR that holds a run, which is moved aside",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.resume and args.fresh:
        raise InputError("--resume goes on with a run and --fresh starts anew: choose one of them")
    if not args.config_file:
        raise InputError("--config FILE is missing, e.g. configs/quickstart/faster_rcnn_rambo.yaml")
    # Detectron2 reads the file too, and knows nothing of those that are shipped with the package.
    args.config_file = find_config(args.config_file)
    return args


#: What is evaluated beside boxes -> title and metric that the table has of it.
_OTHERS = {
    "segm": ("mask AP", "AP"),
    "keypoints": ("key point AP", "AP"),
    "voc": ("VOC AP50", "AP50"),
}


def result_table(results: dict[str, Any]) -> str:
    """A table of all metrics: a row a data set, first the averages, then AP of each class."""
    from tabulate import tabulate

    by_set = results if "bbox" not in results else {"": results}
    lines = []
    for name, result in by_set.items():
        bbox = result["bbox"]
        others = [(*_OTHERS[task], result[task]) for task in _OTHERS if task in result]
        head = {k: bbox[k] for k in ("AP", "AP50", "AP75")}
        head.update({title: found[metric] for title, metric, found in others})
        classes = [key.removeprefix("AP-") for key in bbox if key.startswith("AP-")]
        # Detectron2 has no AP of the key points of each class.
        others = [o for o in others if all(f"{o[1]}-{label}" in o[2] for label in classes)]
        per_class = [
            (
                label,
                bbox[f"AP-{label}"],
                *(found[f"{metric}-{label}"] for _, metric, found in others),
            )
            for label in classes
        ]
        if name:
            lines.append(name)
        lines.append(tabulate([head], headers="keys", floatfmt=".3f", tablefmt="github"))
        if per_class:
            headers = ["class", "AP", *(title for title, *_ in others)]
            lines.append(tabulate(per_class, headers, floatfmt=".3f", tablefmt="github"))
        if head["AP"] != head["AP"]:
            lines.append("nan: nothing was detected, or the data have no object")
        elif any(row[1] != row[1] for row in per_class):
            lines.append("nan: the data have no object of that class")
    return "\n\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process of a run: training and evaluation, or evaluation alone."""
    import detectron2.utils.comm as comm

    from ..engine.checkpointer import load_whole_model
    from ..engine.console import set_up
    from ..engine.saved import write_data
    from ..engine.setup import build_config, prepare_output, with_seed
    from ..engine.trainer import RamboTrainer

    cfg = build_config(args)
    if args.eval_only:
        cfg = _with_weights(cfg, args)
    if not args.resume:
        _check_weights(cfg)
    cfg = with_seed(cfg, args)
    aside = None
    if comm.is_main_process() and not args.eval_only:
        aside = prepare_output(cfg, args.resume, args.fresh)
    comm.synchronize()
    logger = set_up(cfg, args, cfg.OUTPUT_DIR)
    if aside:
        logger.info("The earlier run in %s is now in %s", cfg.OUTPUT_DIR, aside)
    logger.info("Device: %s", _device_name(cfg.MODEL.DEVICE))
    best = None
    if args.eval_only:
        model = RamboTrainer.build_model(cfg)
        _load(lambda: load_whole_model(model, cfg.MODEL.WEIGHTS, args.config_file), cfg)
        results = RamboTrainer.test(cfg, model)
        place = cfg.MODEL.WEIGHTS
    else:
        trainer = RamboTrainer(cfg)
        if comm.is_main_process():
            write_data(cfg.OUTPUT_DIR, args, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        _load(lambda: trainer.resume_or_load(resume=args.resume), cfg)
        trainer.train()
        # Empty in all processes but the main one.
        results = getattr(trainer, "_last_eval_results", None)
        if results is None:
            results = RamboTrainer.test(cfg, trainer.model)
        place = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        best = trainer.best and trainer.best.summary()
    if comm.is_main_process():
        print(f"\n{result_table(results)}\n\ncheckpoint: {place}")
        if best:
            print(best)
    return results


def _check_processes(args: argparse.Namespace, process: Process) -> None:
    """Finds a mistake before many processes are started to find it."""
    import torch

    from ..engine.setup import build_config

    if args.num_gpus > max(torch.cuda.device_count(), 1):
        raise InputError(f"--num-gpus {args.num_gpus}: there are {torch.cuda.device_count()} here")
    if args.num_gpus * args.num_machines > 1 and process is run:
        build_config(args)


def _with_weights(cfg: Any, args: argparse.Namespace) -> Any:
    """For evaluation: the weights that were named, else the last checkpoint of OUTPUT_DIR."""
    if "MODEL.WEIGHTS" in args.opts[::2]:
        return cfg
    from ..engine.checkpointer import last_checkpoint
    from ..engine.setup import check_same_classes

    file = last_checkpoint(cfg.OUTPUT_DIR)
    if file is None:
        raise InputError(
            f"--eval-only: no checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR}: "
            "name one with MODEL.WEIGHTS FILE"
        )
    check_same_classes("--eval-only", Path(cfg.OUTPUT_DIR), cfg.DATASETS.TEST)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(file)
    cfg.freeze()
    return cfg


def _check_weights(cfg: Any) -> None:
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"MODEL.WEIGHTS {weights}: no such file")


def _load(load: Any, cfg: Any) -> None:
    try:
        load()
    except OSError as error:  # a download that fails among them
        raise InputError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} cannot be loaded: {error}") from error


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"
    return f"{device} ({torch.get_num_threads()} threads)"


def main(argv: Sequence[str] | None = None, process: Process = run) -> int:
    """Command line entry; returns the exit status: 2 after a user's mistake.

    Args:
        argv: the arguments; None: those of the command line.
        process: what each process of the run does, see :func:`run`.
    """
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback

    def launched() -> None:
        args = parse_args(argv, lazy=process is not run)
        from ..engine.launch import launch

        _check_processes(args, process)
        launch(process, args)

    return status_of(launched, "--resume goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
