"""Command line options of the training, and options that other commands share with it."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..data.source import PART_SUFFIXES
from ..errors import InputError
from ..paths import find_config

_LAZY_EXAMPLES = "Examples: train.init_checkpoint=weights.pth optimizer.lr=0.001"


def raise_input_error(message: str) -> NoReturn:
    """Raises InputError; replaces ``ArgumentParser.error``, which also prints the usage."""
    raise InputError(message)


class _Register(argparse.Action):
    """Action that appends (format, name, place, part) to ``args.register``."""

    def __call__(self, _parser: Any, args: argparse.Namespace, values: Any, _: Any = None) -> None:
        # Existing paths are not refused: a folder may have the same name as the dataset.
        if "/" in values[0] or values[0].endswith((".json", ".yaml")):
            raise_input_error(
                f"--register-{self.const} {' '.join(values)}: the name of the data comes first"
            )
        args.register = [*args.register, (self.const, *values)]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that register a user's own datasets, for every tool that reads datasets."""
    parser.set_defaults(register=[])
    for kind, metavar, text in (
        ("coco", "NAME JSON IMAGE_DIR", "a COCO json, or a folder with it: NAME FOLDER SPLIT"),
        ("voc", "NAME ROOT SPLIT", "Pascal VOC: ROOT/ImageSets/Main/SPLIT.txt, or the folder "
         "ROOT/SPLIT of images with an xml beside each (SPLIT . is ROOT itself)"),
        ("yolo", "NAME DATA_YAML SPLIT", "data in YOLO format"),
    ):  # fmt: skip
        parser.add_argument(
            f"--register-{kind}", nargs=3, action=_Register, const=kind, dest="register",
            metavar=tuple(metavar.split()), default=argparse.SUPPRESS, help=f"{text}; repeatable",
        )  # fmt: skip
    text = "data without splits: NAME becomes NAME_train and, of this share, NAME_val"
    parser.add_argument("--split", type=float, metavar="SHARE", help=text)
    text = "class names of that data; by default read from it"
    parser.add_argument("--classes", metavar="A,B,C", help=text)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds the option that imports a user's own code."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
        help="code of your own that registers backbones, heads or data sets, imported before the "
        "config is read; its add_config(cfg) is called; repeatable",
    )  # fmt: skip


def registered_names(args: argparse.Namespace) -> list[str]:
    """Returns the names of the datasets that the options of :func:`add_data_arguments` register."""
    parts = ("",) if args.split is None else PART_SUFFIXES
    return [name + part for _, name, *_ in args.register for part in parts]


def classes_from_args(args: argparse.Namespace) -> list[str] | None:
    """Returns the class names given with ``--classes``; None without that option."""
    return None if args.classes is None else [name.strip() for name in args.classes.split(",")]


def add_hold_out(parser: argparse.ArgumentParser) -> None:
    """Adds the option that sets training images aside for the evaluation."""
    text = "evaluate on one of every N training images, set aside, and not on DATASETS.TEST"
    parser.add_argument("--hold-out", type=int, metavar="N", help=text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a trained detector, for every tool that uses one."""
    add = parser.add_argument
    add("--run", metavar="OUTPUT_DIR", help="a training: its last checkpoint")
    add("--config", metavar="FILE", help="or a yaml config or a LazyConfig, and")
    add("--weights", metavar="FILE", help="a checkpoint, of RaMBO or stock")
    add_import(parser)
    text = "changes to the config, at the end of the command"
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help=text)


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
    text = "train nothing: print what the data sets have, and write pictures with boxes to FOLDER"
    add("--check-data", metavar="FOLDER", help=text)
    text = "start anew in an OUTPUT_DIR that holds a run, which is moved aside"
    add("--fresh", action="store_true", help=text)
    args = parser.parse_args(argv)
    args.lazy = lazy
    if args.resume and args.fresh:
        raise InputError("--resume goes on with a run and --fresh starts anew: choose one of them")
    if args.check_data is not None and not args.config_file:
        if not args.register:
            raise InputError("--check-data: name data with --register-..., or a --config FILE")
        return args
    if not args.config_file:
        raise InputError("--config FILE is missing, e.g. configs/quickstart/faster_rcnn_rambo.yaml")
    # Detectron2 opens this file too, but does not search the configs shipped with the package.
    args.config_file = find_config(args.config_file)
    return args
