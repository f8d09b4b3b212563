"""``rambo-compare`` (tools/compare.py): trains with several losses and seeds and compares them."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.files import make_folder
from ..engine.arguments import add_data_arguments, add_hold_out, add_import, raise_input_error
from ..errors import InputError
from .failures import exit_status

_MAX_SEEDS = 1000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="rambo-compare", description="Trains with several losses and seeds and compares them.",
        epilog="A config key may be given in several places. The last of these takes precedence: "
        "--config, the end of the command line, --data, --variant. To continue an interrupted "
        "comparison, repeat the same command.",
    )  # fmt: skip
    parser.error = raise_input_error
    add, text = parser.add_argument, "yaml config of the model; its loss is replaced"
    add("--config", "--config-file", dest="config_file", required=True, metavar="FILE", help=text)
    text = "losses from ce, focal, rambo; the first is the reference (default: stock loss, rambo; "
    text += "none with --variant or --grid)"
    add("--losses", metavar="A,B", help=text)
    more = {"action": "append", "default": []}
    text = "a loss with extra config keys; repeatable"
    add("--variant", **more, metavar="'NAME=LOSS KEY VALUE ...'", help=text)
    text = "a variant for each combination of the values; repeatable"
    add("--grid", **more, metavar="'NAME=LOSS KEY V1,V2 ...'", help=text)
    text = "number of seeds (0 to N-1), or a list such as 3,4,7; write seed 7 alone as 7,"
    add("--seeds", default="3", metavar="N", help=text)
    text = "a dataset: SPEC is voc:ROOT:TRAIN:VAL, yolo:DATA_YAML:TRAIN:VAL, coco:FOLDER:TRAIN:VAL"
    text += ", coco:TRAIN.json:IMAGES:VAL.json:IMAGES or a config file with its own datasets; "
    text += "repeatable (default: the datasets of --config)"
    add("--data", **more, metavar="'NAME=SPEC [KEY VALUE ...]'", help=text)
    add_data_arguments(parser)
    add_import(parser)
    add_hold_out(parser)
    add("--out", type=Path, default=Path("output/compare"), metavar="FOLDER")
    add("--jobs", type=int, default=1, help="number of trainings at a time (default: 1)")
    add("--threads", type=int, help="CPU threads per training (default: all cores / --jobs)")
    text = "which checkpoints of finished runs stay; last (default) includes the best one, if any"
    add("--checkpoints", choices=("all", "last", "none"), default="last", help=text)
    text = "number of bootstrap resamples of the test images (default: 2000)"
    add("--bootstrap", type=int, default=2000, metavar="N", help=text)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys for all runs")
    args = parser.parse_args(argv)
    if args.threads is None:
        args.threads = max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    for key, minimum in (("jobs", 1), ("threads", 1), ("bootstrap", 100)):
        if getattr(args, key) < minimum:
            raise InputError(f"--{key} must be >= {minimum}, got {getattr(args, key)}")
    if not args.config_file.endswith((".yaml", ".yml")):
        raise InputError(f"--config {args.config_file} must be a yaml config")
    if args.data and (args.register or args.classes is not None or args.split is not None):
        raise InputError("--data cannot be combined with --register-..., --split or --classes")
    args.seeds = _seeds(args.seeds)
    return args


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = [-1]
    if max(numbers) >= 2**32:
        raise InputError(f"--seeds {text}: seeds must be below 2**32")
    if "," not in text and numbers[0] > _MAX_SEEDS:
        remedy = f"use at most {_MAX_SEEDS}; write '{text},' if it is one seed"
        raise InputError(f"--seeds {text} means {text} seeds: {remedy}")
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: use a number >= 1 or different seeds such as 3,4,7")
    return seeds


def plan_of(args: argparse.Namespace) -> Any:
    """Returns the :class:`..compare.plan.Plan` of a command line."""
    from ..compare.plan import make_plan
    from ..compare.specs import DataSpec, parse_data, parse_variants
    from ..engine.setup import merged_config

    variants = parse_variants(args.losses, args.variant, args.grid, merged_config(args))
    own = ["--config", args.config_file]
    for kind, *values in args.register:
        own += [f"--register-{kind}", *values]
    for option, value in (("--classes", args.classes), ("--split", args.split)):
        own += [] if value is None else [option, str(value)]
    data = [parse_data(text, args.config_file) for text in args.data] or [DataSpec("", own)]
    shared = [word for name in args.imports for word in ("--import", name)]
    shared += [] if args.hold_out is None else ["--hold-out", str(args.hold_out)]
    data = [replace(item, arguments=[*shared, *item.arguments]) for item in data]
    return make_plan(data, variants, args.seeds, args.opts, args.out)


def run(args: argparse.Namespace, command: str) -> int:
    """Trains the unfinished runs, measures all and writes the report; returns 1 if a run failed."""
    from ..compare.report import write_report
    from ..compare.results import compare, measure, write_results
    from ..compare.run import folder_lock, run_all
    from ..compare.text import as_text, overlap_warning

    plan = plan_of(args)
    for data, images in plan.num_test_images_in_train.items():
        for text in overlap_warning(images):
            print(f"warning: {data}: {text}", file=sys.stderr)
    make_folder(args.out, "--out")
    with folder_lock(args.out) as lock:
        failed = run_all(plan.runs, args.jobs, args.threads, args.checkpoints, lock)
        measured = [measure(plan, run) for run in plan.runs]
        results = compare(plan, measured, command, args.bootstrap)
        if renamed := write_results(plan, results, args.out):
            print(f"{args.out} had results of other runs; renamed them to {', '.join(renamed)}")
        write_report(plan, measured, results, args.out / "report.html")
    print(f"\n{as_text(results)}\n\nreport: {args.out / 'report.html'}")
    if failed:
        folders = ", ".join(str(item.folder) for item in failed)
        print(f"error: {len(failed)} of {len(plan.runs)} runs failed: {folders}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 2 after a user's mistake, 1 if a run failed."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    command = shlex.join(["rambo-compare", *(sys.argv[1:] if argv is None else argv)])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return exit_status(lambda: run(parse_args(argv), command), "repeat the command to continue")
    finally:
        signal.signal(signal.SIGTERM, before)
