"""A trained detector as files, and the annotations that its detections are compared with."""

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
from ..places import find_config
from .folder import earlier_value, last_checkpoint
from .keys import LAZY
from .run_data import SavedData, read_data


@dataclass
class SavedModel:
    """A detector as files."""

    config: str  # file of a yaml config or a LazyConfig
    weights: str  # a file or an address
    data: SavedData  # of the run that the weights are of
    results: Path | None = None  # what its last evaluation detected, if it was of these weights

    @property
    def is_lazy(self) -> bool:
        """Whether the config is a LazyConfig."""
        folder, name = os.path.split(self.config)
        is_of_a_run = name == "config.yaml" and earlier_value(folder, LAZY.folder) is not None
        return name.endswith(".py") or is_of_a_run


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
        found = SavedModel(find_config(config), weights, data)
    elif config is not None:
        raise InputError("--run has a config of its own: leave out --config")
    else:
        folder = Path(run)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"--run {run}: no training has been there (it has no config.yaml)")
        file, data = str(weights or last_checkpoint(run) or ""), read_data(folder)
        if not file:
            raise InputError(f"--run {run}: no checkpoint there yet: name one with --weights FILE")
        results = None if weights else folder / "inference" / "coco_instances_results.json"
        found = SavedModel(str(folder / "config.yaml"), file, data, results)
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
