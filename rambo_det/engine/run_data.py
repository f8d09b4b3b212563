"""Writes and reads data.json in a run's folder: the run's classes and where its datasets are."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data.coco import find_coco
from ..data.register import registered_classes
from ..errors import InputError
from .arguments import registered_names
from .files import atomic_write

_DATA = "data.json"


@dataclass
class RunData:
    """The content of data.json, see :func:`write_data`; empty without that file."""

    classes: list[str] = field(default_factory=list)  # in the order of the model's outputs
    imports: list[str] = field(default_factory=list)  # values of the option --import
    #: Format, name, place and part of the datasets of the command line, and of the datasets that
    #: --split and --hold-out made.
    register: list[list[str]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)  # dataset of a split -> image files
    annotations: dict[str, str] = field(default_factory=dict)  # test dataset -> COCO json


def write_data(
    folder: str | Path, args: argparse.Namespace, train: Sequence[str], test: Sequence[str]
) -> None:
    """Writes class names and the locations of the datasets ``train`` and ``test`` to data.json."""
    # Without this entry, no later command could register the datasets of --split and --hold-out.
    used = map(MetadataCatalog.get, dict.fromkeys([*registered_names(args), *train, *test]))
    parts = [metadata for metadata in used if metadata.get("part_of")]
    images = {p.name: json.loads(Path(p.json_file).read_text("utf-8"))["images"] for p in parts}
    register = [_with_absolute_paths(*item) for item in args.register] if args.split is None else []
    files = {name: MetadataCatalog.get(name).get("json_file") for name in test}
    data = RunData(
        registered_classes([*train, *test][0]) if train or test else [],
        [os.path.abspath(x) if x.endswith(".py") else x for x in args.imports],
        register + [["coco", p.name, p.json_file, os.path.abspath(p.image_root)] for p in parts],
        {name: sorted(image["file_name"] for image in items) for name, items in images.items()},
        {name: os.path.abspath(file) for name, file in files.items() if file},
    )
    with atomic_write(str(Path(folder, _DATA)), "w") as file:
        json.dump(vars(data), file, indent=1)


def _with_absolute_paths(kind: str, name: str, place: str, part: str) -> list[str]:
    """Returns a dataset of the command line with absolute paths."""
    if kind == "coco":
        return [kind, name, *(os.path.abspath(path) for path in find_coco(place, part))]
    return [kind, name, os.path.abspath(place), part]


def has_only_own_data(folder: Path) -> bool:
    """Returns False if the folder has a data.json that :func:`write_data` did not write."""
    try:
        content = json.loads((folder / _DATA).read_text())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"classes", "register"} <= content.keys()


def read_data(folder: Path) -> RunData:
    """Reads data.json of the run in the folder; an empty RunData without that file."""
    file = folder / _DATA
    try:
        content = json.loads(file.read_text())
        return RunData(**{k: v for k, v in content.items() if k in vars(RunData())})
    except FileNotFoundError:
        return RunData()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}): correct it, or start a new run") from None
