"""Calibrates a model; writes its checkpoint, class thresholds and a reliability diagram."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from ..errors import InputError
from ..evaluation.calibration import Calibration, calibrate, draw_reliability
from ..modeling.classifier import Classifier
from .checkpointer import CALIBRATION_FILES, RAW_FILE
from .files import atomic_write
from .saved_model import ground_truth_of

_THRESHOLDS, _PICTURE = CALIBRATION_FILES
#: Name of the folder, inside that of the run, for the evaluation of the calibrated scores.
CALIBRATED_FOLDER = "calibrated"
#: Maximum number of images that a calibration is fitted to.
MAX_IMAGES = 500


def write_calibrated(
    model: nn.Module,
    found: Calibration,
    file: Path,
    classes: list[str],
    data: str,
    kept: dict[str, Any] | None = None,
) -> None:
    """Rescales a model; writes its checkpoint, and beside it thresholds and a reliability diagram.

    ``file`` is the path of the checkpoint. ``data`` is the name of the dataset that the calibration
    was fitted to. ``kept`` has further entries for the checkpoint.
    """
    from matplotlib.figure import Figure

    Classifier(model).apply(found.rescaling)
    calibration = {
        "factor": float(found.rescaling.factor),
        "shift": found.rescaling.shift.tolist(),
        "data": data,
    }
    state = {"model": model.state_dict(), "calibration": calibration, **(kept or {})}
    with atomic_write(str(file), "wb") as stream:
        torch.save(state, stream)
    before, after = found.errors
    content = {
        "weights": file.name,
        "data": data,
        "calibration error in percent": [round(before, 3), round(after, 3)],
        "all": found.threshold,
        "classes": dict(zip(classes, found.thresholds, strict=True)),
    }
    with atomic_write(str(file.with_name(_THRESHOLDS)), "w") as stream:
        json.dump(content, stream, indent=1)
    figure = Figure(figsize=(5, 5), layout="constrained")
    curves = [("raw", found.raw, found.right), ("calibrated", found.scores, found.right)]
    draw_reliability(figure.add_subplot(), curves)
    with atomic_write(str(file.with_name(_PICTURE)), "wb") as stream:
        figure.savefig(stream, dpi=100)


def labelled_images(name: str, mapper: Any, most: int) -> tuple[Any, COCO]:
    """Returns a loader of at most ``most`` images, spread over a dataset, and their annotations."""
    records = DatasetCatalog.get(name)  # first: this call may create the annotation file
    records = records[:: -(-len(records) // most)]
    # The default sampler gives each process only a part, but a single process calibrates.
    loader = build_detection_test_loader(
        records, mapper=mapper, sampler=SequentialSampler(records), num_workers=0
    )
    return tqdm(loader, desc="calibrate", unit="image", disable=None), ground_truth_of(name)


def calibrate_final(model: nn.Module, mapper: Any, folder: Path, data: str) -> str:
    """Calibrates ``model_final.pth``, whose raw weights are saved as ``model_raw.pth``.

    ``model`` must have the weights of ``model_final.pth``. Returns a summary in one line. If no
    calibration fits the dataset ``data``, the line says why, and all files stay unchanged.
    """
    model = getattr(model, "module", model)
    file, raw = folder / "model_final.pth", folder / RAW_FILE
    training = model.training
    model.eval()
    try:
        images, truth = labelled_images(data, mapper, MAX_IMAGES)
        found = calibrate(model, images, truth)
    except InputError as error:
        return f"The scores are as trained, not calibrated: {error}"
    finally:
        model.train(training)
    if not raw.is_file():  # raw exists if a finished, calibrated run is resumed
        with atomic_write(str(raw), "wb") as stream, file.open("rb") as source:
            shutil.copyfileobj(source, stream)
    kept = torch.load(raw, map_location="cpu", mmap=True)
    kept = {key: kept[key] for key in ("iteration", "seed") if key in kept}
    classes = list(MetadataCatalog.get(data).thing_classes)
    write_calibrated(model, found, file, classes, data, kept)
    before, after = found.errors
    return (
        f"Calibrated on {data}: calibration error {before:.1f} % before, {after:.1f} % after; raw "
        f"weights: {RAW_FILE}; thresholds of the classes: {_THRESHOLDS}, one for all: "
        f"SCORE_THRESH_TEST {found.threshold:.3g}"
    )


def read_thresholds(weights: str, classes: list[str]) -> list[float] | None:
    """Returns the threshold of each class for a calibrated checkpoint; None if it has none.

    Raises InputError if the file with the thresholds cannot be read or has other classes.
    """
    file = Path(weights).with_name(_THRESHOLDS)
    try:
        content = json.loads(file.read_text())
        if content["weights"] != Path(weights).name:
            return None
        found = {name: float(score) for name, score in content["classes"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{file} is not what rambo-calibrate wrote ({error}): delete it, or give --threshold"
        ) from None
    if list(found) != classes:
        raise InputError(f"{file} is of other classes: delete it, or give --threshold")
    return list(found.values())
