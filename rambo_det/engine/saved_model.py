"""The files of a trained detector, and the annotations that its detections are compared with."""

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from ..errors import InputError
from ..paths import find_config
from .arguments import REGISTER
from .checkpointer import RAW_FILE
from .folder import CALIBRATED_FOLDER, check_weights, last_checkpoint, saved_config_value
from .keys import LAZY
from .run_data import RunData, read_data


@dataclass
class SavedModel:
    """The files of a trained detector."""

    config: str  # path of a yaml config or a LazyConfig
    weights: str  # a path or a URL
    data: RunData  # data of the run that trained the weights
    results: Path | None = None  # detections of the training's last evaluation with these weights

    @property
    def is_lazy(self) -> bool:
        """Whether the config is a LazyConfig."""
        folder, name = os.path.split(self.config)
        is_of_a_run = name == "config.yaml" and saved_config_value(folder, LAZY.folder) is not None
        return name.endswith(".py") or is_of_a_run


def find_model(
    run: str | None, config: str | None, weights: str | None, imports: Sequence[str] = ()
) -> SavedModel:
    """Returns the model of a run, or of a config and a checkpoint.

    ``run`` is an OUTPUT_DIR; its last checkpoint is taken unless ``weights`` names another one.
    ``imports`` are further modules of the user that the model needs. Raises InputError if too few
    or too many of the arguments are given, or something does not exist.
    """
    if weights is not None:
        check_weights("--weights", weights)
    if run is None:
        if config is None or weights is None:
            raise InputError("name a detector: --run OUTPUT_DIR, or --config FILE --weights FILE")
        model = SavedModel(find_config(config), weights, read_data(Path(weights).parent))
    elif config is not None:
        raise InputError("--run and --config exclude each other: the run has its own config")
    else:
        folder = Path(run)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"--run {run} is not the output folder of a training: no config.yaml")
        file = weights or last_checkpoint(run)
        if file is None:
            raise InputError(f"--run {run} has no checkpoint yet: name one with --weights FILE")
        results = None
        if weights is None and file.name == "model_final.pth":
            evaluated = folder / CALIBRATED_FOLDER if (folder / RAW_FILE).is_file() else folder
            results = evaluated / "inference" / "coco_instances_results.json"
        model = SavedModel(str(folder / "config.yaml"), str(file), read_data(folder), results)
    model.data.imports = [*imports, *model.data.imports]
    return model


def ground_truth_of(name: str) -> COCO:
    """Returns the annotations of a registered dataset; InputError if it has no COCO json."""
    file = MetadataCatalog.get(name).get("json_file")
    if not file:
        raise InputError(f"{name} has no COCO annotations: register it with {REGISTER}")
    return load_ground_truth(file)


@lru_cache(maxsize=8)
def load_ground_truth(file: str) -> COCO:
    """Reads annotations in COCO's format; caches those of the last files."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(file)
        # For COCOeval, a detection that matches an object with the id 0 has no match.
        for number, annotation in enumerate(truth.dataset["annotations"], 1):
            annotation["id"] = number
        truth.createIndex()
    return truth
