"""``rambo-train`` (tools/train_net.py): trains and evaluates a detector."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import parse_args
from ..errors import InputError
from .failures import exit_status

#: Evaluation task -> its title in the result table, and the metric shown.
_TASKS = {
    "bbox": ("AP", "AP"),
    "segm": ("mask AP", "AP"),
    "keypoints": ("keypoint AP", "AP"),
    "voc": ("VOC AP50", "AP50"),
}


def result_table(results: dict[str, Any]) -> str:
    """Returns text tables for each dataset: first the averages, then the AP of each class."""
    from tabulate import tabulate

    lines = []
    if not all(isinstance(task, dict) for task in results.values()):  # of a user's own evaluator
        return tabulate(results.items(), floatfmt=".3f", tablefmt="github")
    is_nested = any(isinstance(found, dict) for task in results.values() for found in task.values())
    for name, result in (results if is_nested else {"": results}).items():
        lines += [name] if name else []
        if "bbox" not in result:  # a model that only proposes boxes
            lines += [tabulate([v], headers="keys", tablefmt="github") for v in result.values()]
            continue
        bbox = result["bbox"]
        head = {key: bbox[key] for key in ("AP", "AP50", "AP75")}
        rows = [{"class": key.removeprefix("AP-")} for key in bbox if key.startswith("AP-")]
        for task in filter(result.get, _TASKS):
            (title, metric), found = _TASKS[task], result[task]
            head[title] = found[metric]
            for row in rows:
                key = f"{metric}-{row['class']}"
                if key in found:  # Detectron2 has no keypoint AP per class
                    row[title] = found[key]
        for table in filter(None, ([head], rows)):
            lines.append(tabulate(table, headers="keys", floatfmt=".3f", tablefmt="github"))
        if head["AP"] != head["AP"]:
            lines.append("nan: nothing was detected, or the dataset has no objects")
        elif any(value != value for row in rows for value in row.values()):
            lines.append("nan: the dataset has no object of this class, or difficult ones only")
    return "\n\n".join(lines)


def load_config(args: argparse.Namespace) -> Any:
    """Registers the user's datasets; returns the checked config of the run, yaml or LazyConfig."""
    from ..engine.keys import LAZY, YAML, dataset_names, has_key
    from ..engine.lazy import load_lazy_config
    from ..engine.setup import build_config

    cfg, keys = (load_lazy_config(args), LAZY) if args.lazy else (build_config(args), YAML)
    if not args.lazy and not args.eval_only and cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        logging.getLogger(__name__).warning(
            "SOLVER.WARMUP_ITERS %d is not less than SOLVER.MAX_ITER %d: the learning rate never "
            "reaches SOLVER.BASE_LR", cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER,
        )  # fmt: skip
    if args.eval_only and has_key(cfg, keys.test_sets) and not dataset_names(cfg, keys.test_sets):
        raise InputError(f"{keys.test_sets} is empty: set {keys.setting(keys.test_sets, 'NAME')}")
    return cfg


def check_data(args: argparse.Namespace) -> None:
    """Summarizes the datasets of the config or command line, in text and pictures; no training."""
    from ..engine.arguments import registered_names
    from ..engine.data_pages import write_pages
    from ..engine.keys import LAZY, YAML, dataset_names
    from ..engine.user_data import register_own

    if args.config_file:
        cfg, keys = load_config(args), LAZY if args.lazy else YAML
        names = [*dataset_names(cfg, keys.train_sets), *dataset_names(cfg, keys.test_sets)]
    else:
        register_own(args)
        names = registered_names(args)
    print(write_pages(list(dict.fromkeys(names)), Path(args.check_data)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates, or only evaluates, in one process of a run; returns the results."""
    import detectron2.utils.comm as comm
    from detectron2.evaluation import verify_results

    from ..engine.calibrated import calibrate_final
    from ..engine.checkpointer import RAW_FILE, load_whole_model
    from ..engine.folder import CALIBRATED_FOLDER, EVALUATED_FOLDER, last_checkpoint, prepare_run
    from ..engine.keys import dataset_names, get_key, set_key
    from ..engine.lazy import LazyRun
    from ..engine.run_data import write_data
    from ..engine.terminal import buffer_logs, setup_logging
    from ..engine.trainer import RamboTrainer

    kind = LazyRun if args.lazy else RamboTrainer
    keys, is_main = kind.keys, comm.is_main_process()

    def print_results(results: dict[str, Any], checkpoint: Any, *more: str | None) -> None:
        if is_main:
            table = f"\nin percent:\n\n{result_table(results)}\n" if results else ""
            print(table, f"checkpoint: {checkpoint}", *filter(None, more), sep="\n")

    def evaluate(checkpoint: str) -> dict[str, Any]:
        model = kind.build_model(cfg)
        load_whole_model(model, checkpoint, args.config_file)
        return dict(kind.test(cfg, model))

    with buffer_logs():
        cfg = load_config(args)
        folder = prepare_run(cfg, keys, args)
        if args.resume and (file := last_checkpoint(folder)):
            # Before setup_logging overwrites the config that fits the checkpoint.
            load_whole_model(kind.build_model(cfg), str(file), args.config_file, exactly=True)
    if args.eval_only and (folder / "metrics.json").is_file():
        # The folder of a training keeps the training's own detections: other commands read them.
        folder = folder / EVALUATED_FOLDER
        set_key(cfg, keys.folder, str(folder))
    setup_logging(cfg, keys, args)
    if args.eval_only:
        weights = get_key(cfg, keys.weights)
        raw = os.path.join(os.path.dirname(weights), RAW_FILE)
        if os.path.basename(weights) == "model_final.pth" and os.path.isfile(raw):
            results = evaluate(raw)
            print_results(results, f"{raw}, not calibrated")
            set_key(cfg, keys.folder, str(folder / CALIBRATED_FOLDER))
        results = evaluate(weights)
        print_results(results, weights)
        if is_main and not args.lazy and cfg.TEST.EXPECTED_RESULTS:
            verify_results(cfg, results)  # ends the process if they differ
        return results
    final, train, calibrate = folder / "model_final.pth", dataset_names(cfg, keys.train_sets), None
    trainer = kind(cfg)
    if is_main:
        write_data(folder, args, train, dataset_names(cfg, keys.test_sets))
    results = trainer.fit(args.resume)
    best, data = trainer.evaluations.summary(), get_key(cfg, keys.calibrate)
    if is_main and data != "off" and final.is_file():
        data = train[0] if data == "train" else data
        calibrate = calibrate_final(trainer.model, kind.test_mapper(cfg), folder, data)
    # All processes follow process 0: a process on another machine may not see the file.
    if comm.all_gather((folder / RAW_FILE).is_file())[0]:
        print_results(results, f"{folder / RAW_FILE}, not calibrated")
        set_key(cfg, keys.folder, str(folder / CALIBRATED_FOLDER))
        results = evaluate(str(final))
    print_results(results, final, best, calibrate)
    return results


def main(argv: Sequence[str] | None = None, lazy: bool = False) -> int:
    """Runs the command (``lazy``: for a LazyConfig); returns the exit status, 2 for a mistake."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback

    def launched() -> None:
        import torch

        args = parse_args(argv, lazy)
        from ..engine.launch import launch
        from ..engine.terminal import buffer_logs

        if args.check_data is not None:
            check_data(args)
            return
        if args.num_gpus > max(num_gpus := torch.cuda.device_count(), 1):
            raise InputError(f"--num-gpus {args.num_gpus}: this machine has {num_gpus} GPUs")
        if args.num_gpus * args.num_machines > 1 and not lazy:
            with buffer_logs():  # finds mistakes before many processes start
                load_config(args)
        launch(run, args)

    return exit_status(launched, "--resume continues from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
