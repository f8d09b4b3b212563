"""``rambo-train``: train and evaluate a detector; the main of tools/train_net.py."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import parse_args
from ..errors import InputError
from .failures import status_of

#: What is evaluated -> title and metric that the table has of it.
_TASKS = {
    "bbox": ("AP", "AP"),
    "segm": ("mask AP", "AP"),
    "keypoints": ("key point AP", "AP"),
    "voc": ("VOC AP50", "AP50"),
}


def result_table(results: dict[str, Any]) -> str:
    """A table of all metrics: a row a data set, first the averages, then AP of each class."""
    from tabulate import tabulate

    lines = []
    for name, result in ({"": results} if "bbox" in results else results).items():
        bbox = result["bbox"]
        tasks = {_TASKS[task]: result[task] for task in _TASKS if task in result}
        head = {key: bbox[key] for key in ("AP", "AP50", "AP75")}
        head |= {title: found[metric] for (title, metric), found in tasks.items()}
        classes = [key.removeprefix("AP-") for key in bbox if key.startswith("AP-")]
        rows = [
            {"class": label}
            | {
                title: found[f"{metric}-{label}"]
                for (title, metric), found in tasks.items()
                if f"{metric}-{label}" in found  # Detectron2 has none of each class's key points
            }
            for label in classes
        ]
        tables = [[head], rows] if rows else [[head]]
        lines += [name] if name else []
        lines += [tabulate(t, headers="keys", floatfmt=".3f", tablefmt="github") for t in tables]
        if head["AP"] != head["AP"]:
            lines.append("nan: nothing was detected, or the data have no object")
        elif any(row["AP"] != row["AP"] for row in rows):
            lines.append("nan: the data have no object of that class")
    return "\n\n".join(lines)


def load_config(args: argparse.Namespace) -> Any:
    """The checked config of the run, yaml or LazyConfig, whose own data sets are registered."""
    from ..engine.lazy import load_lazy_config
    from ..engine.setup import build_config

    return (load_lazy_config if args.lazy else build_config)(args)


def check_data(args: argparse.Namespace) -> None:
    """Tells what the data sets of the command line, or of the config, have; trains nothing."""
    from ..engine.arguments import own_names
    from ..engine.data_pages import write_pages
    from ..engine.keys import LAZY, YAML, names
    from ..engine.own_data import register_own

    if args.config_file:
        cfg, keys = load_config(args), LAZY if args.lazy else YAML
        found = [*names(cfg, keys.train), *names(cfg, keys.test)]
    else:
        register_own(args)
        found = own_names(args)
    print(write_pages(list(dict.fromkeys(found)), Path(args.check_data)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process of a run: training and evaluation, or evaluation alone."""
    import detectron2.utils.comm as comm
    import torch

    from ..engine.calibrated import CALIBRATED, calibrate_final, check_calibration_set
    from ..engine.checkpointer import RAW
    from ..engine.folder import earlier_seed, last_checkpoint, prepare_folder
    from ..engine.keys import names, set_value, value
    from ..engine.lazy import LazyRun
    from ..engine.saved import check_goes_on, write_data
    from ..engine.seeds import run_seed
    from ..engine.terminal import held_until_set_up, set_up
    from ..engine.trainer import RamboTrainer

    kind = LazyRun if args.lazy else RamboTrainer
    keys, main = kind.keys, comm.is_main_process()
    with held_until_set_up():
        cfg = load_config(args)
    train, test = names(cfg, keys.train), names(cfg, keys.test)
    if not value(cfg, keys.folder):
        raise InputError(f"{keys.folder} is empty: name a folder")
    folder = Path(value(cfg, keys.folder))
    calibrate, warning = value(cfg, keys.calibrate), None
    if calibrate not in ("off", "train") and not args.eval_only:
        check_calibration_set(keys.calibrate, calibrate, train[0])
    if args.eval_only and not keys.named(keys.weights, args.opts):
        file = last_checkpoint(folder)
        if file is None:
            raise InputError(
                f"--eval-only: no checkpoint in {keys.folder} {folder}: name one with "
                f"{keys.weights}{keys.sign}FILE"
            )
        set_value(cfg, keys.weights, str(file))
        check_goes_on("--eval-only", folder, test)
    elif args.resume and not args.eval_only:
        warning = check_goes_on("--resume", folder, train[:1], None if args.lazy else cfg)
    weights = value(cfg, keys.weights)
    if weights and not args.resume and "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"{keys.weights} {weights}: no such file")
    # Of a run that is gone on with its own, unless the command line gives one.
    earlier = earlier_seed(folder) if args.resume and main else None
    named = keys.named(keys.seed, args.opts)
    set_value(cfg, keys.seed, run_seed(value(cfg, keys.seed), None if named else earlier))
    aside = None
    if main and not args.eval_only:
        remedy = f"{keys.folder}{keys.sign}FOLDER"
        aside = prepare_folder(folder, args.resume, args.fresh, remedy)
    comm.synchronize()
    logger = set_up(cfg, keys, args)
    if aside:
        logger.info("The earlier run in %s is now in %s", folder, aside)
    device = value(cfg, keys.device)
    about = f"{torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        about = torch.cuda.get_device_name(torch.device(device))
    logger.info("Device: %s (%s)", device, about)
    if warning:
        logger.warning("%s", warning)
    told: list[str | None] = []
    if args.eval_only:
        raw = os.path.join(os.path.dirname(weights), RAW)
        if os.path.basename(weights) == "model_final.pth" and os.path.isfile(raw):
            _show(kind.evaluate_checkpoint(cfg, raw, args.config_file), f"{raw}, not calibrated")
        results, place = kind.evaluate_checkpoint(cfg, weights, args.config_file), weights
    else:
        trainer = kind(cfg)
        if main:
            write_data(str(folder), args, train, test)
        results, place = trainer.fit(args.resume), str(folder / "model_final.pth")
        told.append(trainer.evaluations.summary())
        if main and calibrate != "off" and os.path.isfile(place):
            data = train[0] if calibrate == "train" else calibrate
            told.append(calibrate_final(trainer.model, kind.test_mapper(cfg), folder, data))
        # A process on another machine need not see the file.
        if comm.all_gather((folder / RAW).is_file())[0]:
            _show(results, f"{folder / RAW}, not calibrated")
            set_value(cfg, keys.folder, str(folder / CALIBRATED))
            results = kind.evaluate_checkpoint(cfg, place, args.config_file)
    _show(results, place)
    for line in filter(None, told if main else ()):
        print(line)
    return dict(results)


def _show(results: dict[str, Any], checkpoint: str) -> None:
    """Prints the metrics of a checkpoint, in the main process alone."""
    import detectron2.utils.comm as comm

    if comm.is_main_process():
        print(f"\n{result_table(results)}\n\ncheckpoint: {checkpoint}")


def main(argv: Sequence[str] | None = None, lazy: bool = False) -> int:
    """Command line entry, ``lazy``: for a LazyConfig; exit status 2 after a user's mistake."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback

    def launched() -> None:
        import torch

        args = parse_args(argv, lazy)
        from ..engine.launch import launch
        from ..engine.terminal import held_until_set_up

        if args.check_data is not None:
            check_data(args)
            return
        if args.num_gpus > max(torch.cuda.device_count(), 1):
            there = torch.cuda.device_count()
            raise InputError(f"--num-gpus {args.num_gpus}: there are {there} here")
        if args.num_gpus * args.num_machines > 1 and not lazy:
            with held_until_set_up():  # a mistake, before many processes are started to find it
                load_config(args)
        launch(run, args)

    return status_of(launched, "--resume goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
