"""What a training leaves in its folder for those who look at it later: config, weights, data."""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from ..config_files import find_config
from ..data.coco import find_coco
from ..errors import InputError
from .arguments import own_names
from .files import whole_file
from .folder import earlier_value, last_checkpoint
from .keys import LAZY, value
from .own_data import check_same_classes, classes_of

_FILE = "data.json"
#: Keys that a run may not change once it has begun.
_OF_THE_MODEL = (
    "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.RESNETS.DEPTH",
)  # fmt: skip


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
    folder: str, args: argparse.Namespace, train: Sequence[str], test: Sequence[str]
) -> None:
    """Notes down class names and where the registered data ``train`` and ``test`` are."""
    # What --split and --hold-out made of the data: nobody else could register it again.
    used = map(MetadataCatalog.get, dict.fromkeys([*own_names(args), *train, *test]))
    parts = [metadata for metadata in used if metadata.get("part_of")]
    register = [_located(*item) for item in args.register] if args.split is None else []
    register += [["coco", p.name, p.json_file, p.image_root] for p in parts]
    files = {name: MetadataCatalog.get(name).get("json_file") for name in test}
    data = SavedData(
        classes_of(train[0]),
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
        return SavedData(**{k: v for k, v in content.items() if k in vars(SavedData())})
    except FileNotFoundError:
        return SavedData()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / _FILE} is not what a training wrote: {error}") from None


def check_goes_on(option: str, folder: Path, data: Sequence[str], cfg: Any = None) -> str | None:
    """Raises InputError unless the classes, and the model of a yaml config, are those of the run in
    the folder. Returns a warning if the config has another learning rate, which is not taken."""
    for name in data:
        check_same_classes(option, name, f"the run in {folder}", read_data(folder).classes)
    if cfg is None:
        return None
    for key in _OF_THE_MODEL:
        was, now = earlier_value(folder, key), value(cfg, key)
        if was is not None and was != str(now):
            raise InputError(f"{option}: {key} is {now!r}, the run in {folder} has {was!r}")
    rate, now = earlier_value(folder, "SOLVER.BASE_LR"), cfg.SOLVER.BASE_LR
    if rate in (None, str(now)):
        return None
    return f"SOLVER.BASE_LR {now:g} is not taken: the run goes on with its own, {rate}"


@dataclass
class SavedModel:
    """A detector as files."""

    config: str  # file of a yaml config or a LazyConfig
    weights: str  # a file or an address
    folder: Path | None  # of the run; None if the two above were named apart from a run
    data: SavedData  # of the run that the weights are of
    is_last: bool = False  # whether the weights are those of the run's last evaluation

    @property
    def is_lazy(self) -> bool:
        """Whether the config is a LazyConfig."""
        folder, name = os.path.split(self.config)
        key = LAZY.folder if name == "config.yaml" else ""
        return name.endswith(".py") or earlier_value(folder, key) is not None


def find_model(
    run: str | None, config: str | None, weights: str | None, imports: Sequence[str] = ()
) -> SavedModel:
    """The model that was named: that of a run, or of a config and a checkpoint.

    Of a run, an OUTPUT_DIR, it is the last checkpoint unless ``weights`` names another. ``imports``
    are more of a user's own code that it needs. InputError if too little or too much was named, or
    something does not exist.
    """
    if weights is not None and "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"--weights {weights}: no such file")
    if run is None:
        if config is None or weights is None:
            raise InputError("which detector? --run OUTPUT_DIR, or --config FILE --weights FILE")
        data = read_data(Path(weights).parent)
        found = SavedModel(find_config(config), weights, None, data)
    elif config is not None:
        raise InputError("--run has a config of its own: leave out --config")
    else:
        folder = Path(run)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"--run {run}: no training has been there (it has no config.yaml)")
        file, data = str(weights or last_checkpoint(run) or ""), read_data(folder)
        if not file:
            raise InputError(f"--run {run}: no checkpoint there yet: name one with --weights FILE")
        found = SavedModel(str(folder / "config.yaml"), file, folder, data, weights is None)
    data.imports = [*imports, *data.imports]
    return found


def truth_of(name: str) -> COCO:
    """The annotations of a registered data set; InputError if it has none in COCO's format."""
    file = MetadataCatalog.get(name).get("json_file")
    if not file:
        raise InputError(f"{name} has no COCO annotations: register its folder with --register-voc")
    return load_truth(file)


@lru_cache(maxsize=8)
def load_truth(file: str) -> COCO:
    """Annotations in COCO's format, read once."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return COCO(file)
