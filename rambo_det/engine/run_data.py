"""data.json in the folder of a run: its classes, and where its data are."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data.coco import find_coco
from ..data.register import classes_of
from .arguments import own_names
from .files import whole_file

_DATA = "data.json"


@dataclass
class SavedData:
    """What :func:`write_data` wrote; empty where it did not."""

    classes: list[str] = field(default_factory=list)  # in the order of the model's outputs
    imports: list[str] = field(default_factory=list)  # as the option of the command line
    #: Format, name, place and part of the data of the command line, and of the parts that --split
    #: and --hold-out made of them.
    register: list[list[str]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)  # of such a part: its image files
    annotations: dict[str, str] = field(default_factory=dict)  # of each test set: its COCO json


def write_data(
    folder: str | Path, args: argparse.Namespace, train: Sequence[str], test: Sequence[str]
) -> None:
    """Notes down class names and where the registered data ``train`` and ``test`` are."""
    # What --split and --hold-out made of the data: nobody else could register it again.
    used = map(MetadataCatalog.get, dict.fromkeys([*own_names(args), *train, *test]))
    parts = [metadata for metadata in used if metadata.get("part_of")]
    register = [_located(*item) for item in args.register] if args.split is None else []
    files = {name: MetadataCatalog.get(name).get("json_file") for name in test}
    data = SavedData(
        classes_of([*train, *test][0]) if train or test else [],
        [os.path.abspath(x) if x.endswith(".py") else x for x in args.imports],
        register + [["coco", p.name, p.json_file, p.image_root] for p in parts],
        {p.name: _image_files(p.json_file) for p in parts},
        {name: os.path.abspath(file) for name, file in files.items() if file},
    )
    with whole_file(str(Path(folder, _DATA)), "w") as file:
        json.dump(vars(data), file, indent=1)


def _located(kind: str, name: str, place: str, part: str) -> list[str]:
    """A data set of the command line, wherever one is later."""
    if kind == "coco":
        return [kind, name, *(os.path.abspath(path) for path in find_coco(place, part))]
    return [kind, name, os.path.abspath(place), part]


def _image_files(json_file: str) -> list[str]:
    content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    return sorted(image["file_name"] for image in content["images"])


def read_data(folder: Path) -> SavedData:
    """The data of the run in the folder."""
    try:
        content = json.loads((folder / _DATA).read_text())
    except FileNotFoundError:
        return SavedData()
    return SavedData(**{k: v for k, v in content.items() if k in vars(SavedData())})
