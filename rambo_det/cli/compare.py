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
from types import FrameType
from typing import Any, NoReturn

from ..data.files import make_folder
from ..engine.arguments import add_data_arguments, add_hold_out, add_import, raise_input_error
from ..errors import InputError
from .failures import exit_status

_EPILOG = """\
The order of precedence of config keys: those of --config, then those at the end of the command
line, of --data, and of --variant. A comparison that was interrupted goes on with the same command.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="rambo-compare", description="Train with several losses and seeds and compare.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.error = raise_input_error  # type: ignore[method-assign]
    add, config = parser.add_argument, "yaml config of a model, with whichever loss"
    names = ("--config", "--config-file")
    add(*names, dest="config_file", required=True, metavar="FILE", help=config)
    text = "of ce, focal, rambo; the first is the reference (default: the stock loss and rambo)"
    add("--losses", metavar="A,B", help=text)
    more = {"action": "append", "default": []}
    text = "a loss with config keys of its own; repeatable"
    add("--variant", **more, metavar="'NAME=LOSS KEY VALUE ...'", help=text)
    text = "a variant for each combination of the values; repeatable"
    add("--grid", **more, metavar="'NAME=LOSS KEY V1,V2 ...'", help=text)
    text = "number of seeds, 0 to N - 1, or a list: 3,4,7"
    add("--seeds", default="3", metavar="N", help=text)
    text = "a data set: SPEC is voc:ROOT:TRAIN:VAL, coco:TRAIN.json:IMAGES:VAL.json:IMAGES or a "
    text += "config file with its own sets; repeatable (default: those of --config)"
    add("--data", **more, metavar="'NAME=SPEC [KEY VALUE ...]'", help=text)
    add_data_arguments(parser)
    add_import(parser)
    add_hold_out(parser)
    add("--out", type=Path, default=Path("output/compare"), metavar="FOLDER")
    add("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    text = "CPU threads of each training (default: all, shared by the jobs)"
    add("--threads", type=int, help=text)
    text = "which checkpoints of finished runs stay; last: with the best one, if kept (default)"
    add("--checkpoints", choices=("all", "last", "none"), default="last", help=text)
    text = "resamples (default: 2000)"
    add("--bootstrap", type=int, default=2000, metavar="N", help=text)
    text = "config keys of all runs"
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=text)
    args = parser.parse_args(argv)
    if args.threads is None:
        args.threads = max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    for key, least in (("jobs", 1), ("threads", 1), ("bootstrap", 100)):
        if getattr(args, key) < least:
            raise InputError(f"--{key} must be >= {least}, got {getattr(args, key)}")
    if not args.config_file.endswith((".yaml", ".yml")):
        raise InputError(f"--config {args.config_file}: a yaml config is needed")
    if args.data and (args.register or args.classes is not None or args.split is not None):
        raise InputError("--data goes without --register-..., --split and --classes")
    args.seeds = _seeds(args.seeds)
    return args


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: a number >= 1, or different numbers >= 0 as 3,4,7")
    return seeds


def plan_of(args: argparse.Namespace) -> Any:
    """Returns the :class:`..compare.plan.Plan` of a command line."""
    from ..compare.plan import make_plan
    from ..compare.specs import DataSpec, default_losses, parse_data, parse_variants
    from ..engine.setup import merged_config

    default = default_losses(merged_config(args))
    variants = parse_variants(args.losses, args.variant, args.grid, default)
    data = [parse_data(text, args.config_file) for text in args.data] or [
        DataSpec("", args.config_file, args.register, (), args.classes, args.split)
    ]
    data = [replace(item, hold_out=args.hold_out, imports=args.imports) for item in data]
    return make_plan(data, variants, args.seeds, args.opts, args.out)


def run(args: argparse.Namespace, command: str) -> int:
    """Trains the unfinished runs, measures all and writes the report; returns 1 if a run failed."""
    from ..compare.report import write_report
    from ..compare.results import compare, measure_runs, write_results
    from ..compare.run import folder_lock, run_all
    from ..compare.text import as_text, overlap_warning

    plan = plan_of(args)
    for data, images in plan.num_test_images_in_train.items():
        for text in overlap_warning(images):
            print(f"warning: {data}: {text}", file=sys.stderr)
    make_folder(args.out, "--out")
    with folder_lock(args.out) as lock:
        failed = run_all(plan.runs, args.jobs, args.threads, args.checkpoints, lock)
        measured = measure_runs(plan)
        results = compare(plan, measured, command, args.bootstrap)
        kept = write_results(plan, results, args.out)
        if kept:
            print(f"what was in {args.out} is of other runs too and is kept: {', '.join(kept)}")
        write_report(plan, measured, results, args.out / "report.html")
    print(f"\n{as_text(results)}\n\nreport: {args.out / 'report.html'}")
    if failed:
        folders = ", ".join(str(item.folder) for item in failed)
        print(f"error: {len(failed)} of {len(plan.runs)} runs failed: {folders}", file=sys.stderr)
    return 1 if failed else 0


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 2 after a user's mistake, 1 if a run failed."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    command = shlex.join(["rambo-compare", *(sys.argv[1:] if argv is None else argv)])
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return exit_status(lambda: run(parse_args(argv), command), "the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
