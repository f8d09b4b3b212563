"""What a training leaves in its folder for those who look at it later: config, weights, data."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from ..config_files import find_config
from ..data.coco import find_coco
from ..errors import InputError
from .arguments import own_names
from .files import whole_file
from .folder import earlier_config, last_checkpoint

_FILE = "data.json"


@dataclass
class SavedData:
    """What :func:`write_data` wrote; empty where it did not.

    Attributes:
        classes: their names, in the order of the model's outputs.
        imports: as the option of the command line.
        register: format, name, place and part of the data of the command line, and of the parts
            that ``--split`` and ``--hold-out`` made of them.
        parts: name of such a part -> its image files, sorted.
        annotations: data set of DATASETS.TEST -> its annotations in COCO's format.
    """

    classes: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    register: list[list[str]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


def write_data(
    folder: str, args: argparse.Namespace, train: Sequence[str], test: Sequence[str]
) -> None:
    """Notes down class names and where the data are, which the command line told.

    ``train`` and ``test`` are names of data sets, which are registered.
    """
    # What --split and --hold-out made of the data: nobody else could register it again.
    used = map(MetadataCatalog.get, dict.fromkeys([*own_names(args), *train, *test]))
    parts = [metadata for metadata in used if metadata.get("part_of")]
    register = [_located(*item) for item in args.register] if args.split is None else []
    register += [["coco", p.name, p.json_file, p.image_root] for p in parts]
    files = {name: MetadataCatalog.get(name).get("json_file") for name in test}
    data = SavedData(
        list(MetadataCatalog.get(train[0]).get("thing_classes") or ()),
        [os.path.abspath(x) if x.endswith(".py") else x for x in args.imports],
        register,
        {p.name: sorted(i["file_name"] for i in load_truth(p.json_file).imgs.values())
         for p in parts},
        {name: os.path.abspath(file) for name, file in files.items() if file},
    )  # fmt: skip
    with whole_file(os.path.join(folder, _FILE), "w") as file:
        json.dump(vars(data), file, indent=1)


def _located(kind: str, name: str, place: str, part: str) -> list[str]:
    """A data set of the command line, wherever one is later."""
    if kind == "coco":
        return [kind, name, *(os.path.abspath(path) for path in find_coco(place, part))]
    return [kind, name, os.path.abspath(place), part]


def read_data(folder: Path) -> SavedData:
    """The data of the run in the folder; InputError if the file is there and cannot be read."""
    try:
        content = json.loads((folder / _FILE).read_text())
        content["register"] = content.get("register", [])
        for kind in ("coco", "voc"):  # as versions before 0.2 wrote it
            content["register"] += [[kind, *x] for x in content.get(f"register_{kind}", ())]
        return SavedData(**{k: v for k, v in content.items() if k in vars(SavedData())})
    except FileNotFoundError:
        return SavedData()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / _FILE} is not what a training wrote: {error}") from None


def check_same_classes(option: str, folder: Path, names: Iterable[str]) -> None:
    """Raises InputError unless the data have the classes of the run in the folder, in its order.

    A model has their number alone: under other names it would go on without a word. A folder
    without ``data.json`` is not looked at; ``option`` is what goes on with the run.
    """
    was = read_data(folder).classes
    for name in names:
        now = list(MetadataCatalog.get(name).get("thing_classes") or ())
        pairs = enumerate(zip_longest(was, now), 1) if was and now else ()
        for number, (old, new) in pairs:
            if old != new:
                old, new = ("none" if x is None else repr(x) for x in (old, new))
                raise InputError(
                    f"{option}: class {number} is {old} in the run in {folder} and {new} in "
                    f"{name}: give the run's classes, in its order, with "
                    f"--classes {shlex.quote(','.join(was))}"
                )


@dataclass
class SavedModel:
    """A detector as files.

    Attributes:
        config: file of a yaml config or a LazyConfig.
        weights: the checkpoint, a file or an address.
        folder: of the run; None if the two above were named apart from a run.
        data: of the run, or of the run that the weights are of.
        is_last: whether the weights are those of the run's last evaluation.
    """

    config: str
    weights: str
    folder: Path | None
    data: SavedData
    is_last: bool = False

    @property
    def is_lazy(self) -> bool:
        """Whether the config is a LazyConfig."""
        folder, name = os.path.split(self.config)
        content = earlier_config(folder) if name == "config.yaml" else {}
        return self.config.endswith(".py") or ("model" in content and "MODEL" not in content)


def find_model(run: str | None, config: str | None, weights: str | None) -> SavedModel:
    """The model that was named: that of a run, or of a config and a checkpoint.

    Of a run, an OUTPUT_DIR, it is the last checkpoint unless ``weights`` names another. Raises
    InputError if too little or too much was named, or if something does not exist.
    """
    if weights is not None and "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"--weights {weights}: no such file")
    if run is None:
        if config is None or weights is None:
            raise InputError(
                "which detector? --run OUTPUT_DIR of a training, or --config FILE --weights FILE"
            )
        return SavedModel(find_config(config), weights, None, read_data(Path(weights).parent))
    if config is not None:
        raise InputError("--run has a config of its own: leave out --config")
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"--run {run}: no training has been there (it has no config.yaml)")
    file = weights or last_checkpoint(run)
    if file is None:
        raise InputError(f"--run {run}: no checkpoint there yet: name one with --weights FILE")
    is_last = weights is None
    return SavedModel(str(folder / "config.yaml"), str(file), folder, read_data(folder), is_last)


@lru_cache(maxsize=8)
def load_truth(file: str) -> COCO:
    """Annotations in COCO's format, read once."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return COCO(file)
