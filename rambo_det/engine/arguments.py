"""Command line options of the training, and options that other commands share with it."""

import argparse
import csv
import io
from collections.abc import Sequence
from typing import Any, NoReturn

from ..data.source import PART_SUFFIXES
from ..errors import InputError
from ..paths import find_config

REGISTER = "--register-coco, --register-voc or --register-yolo"
_LAZY_EXAMPLES = "Examples: train.init_checkpoint=weights.pth optimizer.lr=0.001"


def raise_input_error(message: str) -> NoReturn:
    """Raises InputError; replaces ``ArgumentParser.error``, which also prints the usage."""
    raise InputError(message)


class _Register(argparse.Action):
    """Action that appends (format, name, place, part) to ``args.register``."""

    def __call__(self, _parser: Any, args: argparse.Namespace, values: Any, _: Any = None) -> None:
        # Existing paths are not refused: a folder may have the same name as the dataset.
        if "/" in values[0] or values[0].endswith((".json", ".yaml")):
            rule = "the first value must be a dataset name, not a path"
            raise InputError(f"--register-{self.const} {' '.join(values)}: {rule}")
        args.register = [*args.register, (self.const, *values)]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that register a user's own datasets, for every tool that reads datasets."""
    parser.set_defaults(register=[])
    for kind, metavar, text in (
        ("coco", "NAME JSON IMAGE_DIR", "a dataset in COCO format: its json file and image folder; "
         "or NAME FOLDER SPLIT to find both in FOLDER"),
        ("voc", "NAME ROOT SPLIT", "a dataset in Pascal VOC format: the images that "
         "ROOT/ImageSets/Main/SPLIT.txt lists; or a folder ROOT/SPLIT of images with an xml file "
         "beside each (SPLIT . is ROOT itself)"),
        ("yolo", "NAME DATA_YAML SPLIT", "a dataset in YOLO format"),
    ):  # fmt: skip
        parser.add_argument(
            f"--register-{kind}", nargs=3, action=_Register, const=kind, dest="register",
            metavar=tuple(metavar.split()), default=argparse.SUPPRESS, help=f"{text}; repeatable",
        )  # fmt: skip
    text = "split each registered dataset: NAME_val gets this share of images, NAME_train the rest"
    parser.add_argument("--split", type=float, metavar="SHARE", help=text)
    text = "class names of the registered datasets, in order; default: read from the annotations"
    parser.add_argument("--classes", metavar="A,B,C", help=text)


def check_data_arguments(args: argparse.Namespace) -> None:
    """Raises InputError if an option of registered datasets is given without any."""
    for option, value in (("--classes", args.classes), ("--split", args.split)):
        if value is not None and not args.register:
            raise InputError(f"{option} goes with {REGISTER}")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds the option that imports a user's own code."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
        help="your own code, which may register backbones, heads or datasets; imported before the "
        "config is read; its function add_config(cfg) may add config keys; repeatable",
    )  # fmt: skip


def registered_names(args: argparse.Namespace) -> list[str]:
    """Returns the names of the datasets that the options of :func:`add_data_arguments` register."""
    parts = ("",) if args.split is None else PART_SUFFIXES
    return [name + part for _, name, *_ in args.register for part in parts]


def classes_from_args(args: argparse.Namespace) -> list[str] | None:
    """Returns the class names given with ``--classes``; None without that option."""
    if args.classes is None:
        return None
    lines = csv.reader(args.classes.splitlines() or [""], skipinitialspace=True)
    return [name.strip() for line in lines for name in line or [""]]


def classes_to_word(names: Sequence[str]) -> str:
    """Returns the value of ``--classes`` for these names; a name with a comma gets quotes."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(names)
    return row.getvalue()


def add_hold_out(parser: argparse.ArgumentParser) -> None:
    """Adds the option that sets training images aside for the evaluation."""
    text = "hold out one of every N training images and evaluate on these instead of DATASETS.TEST"
    parser.add_argument("--hold-out", type=int, metavar="N", help=text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a trained detector, for every tool that uses one."""
    for option, metavar, text in (
        ("--run", "OUTPUT_DIR", "output folder of a training; uses its last checkpoint"),
        ("--config", "FILE", "yaml config or LazyConfig; use with --weights instead of --run"),
        ("--weights", "FILE", "checkpoint file of a RaMBO or stock Detectron2 model"),
    ):
        parser.add_argument(option, metavar=metavar, help=text)
    add_import(parser)
    text = "config overrides; must be the last option (KEY VALUE, or KEY=VALUE for a LazyConfig)"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=text)


def parse_args(argv: Sequence[str] | None = None, lazy: bool = False) -> argparse.Namespace:
    """Parses the options of Detectron2's train_net.py and those for a user's own datasets.

    ``lazy``: the config is a LazyConfig. Raises InputError for any invalid option.
    """
    from detectron2.engine import default_argument_parser

    # The examples in Detectron2's default epilog are for a yaml config.
    parser = default_argument_parser(epilog=_LAZY_EXAMPLES if lazy else None)
    parser.error = raise_input_error
    add, config = parser.add_argument, {"dest": "config_file", "default": argparse.SUPPRESS}
    add("--config", **config, metavar="FILE", help="the same as --config-file")
    add_data_arguments(parser)
    add_import(parser)
    if lazy:
        parser.set_defaults(hold_out=None)
    else:
        add_hold_out(parser)
    text = "do not train; print dataset statistics and write images with their boxes to FOLDER"
    add("--check-data", metavar="FOLDER", help=text)
    text = "start a new run; an earlier run in OUTPUT_DIR is renamed to OUTPUT_DIR.1, .2, ..."
    add("--fresh", action="store_true", help=text)
    args = parser.parse_args(argv)
    args.lazy = lazy
    for option, is_given in (("--resume", args.resume), ("--eval-only", args.eval_only)):
        if is_given and args.fresh:
            raise InputError(f"{option} and --fresh exclude each other")
    if args.config_file:
        # Detectron2 opens this file too, but does not search the configs of the package.
        args.config_file = find_config(args.config_file)
    elif args.check_data is None:
        raise InputError("--config FILE is missing, e.g. configs/quickstart/faster_rcnn_rambo.yaml")
    elif not args.register:
        raise InputError("--check-data needs datasets: add --register-... or --config FILE")
    elif args.opts or args.hold_out is not None:
        raise InputError("--hold-out and config keys need --config FILE")
    return args
