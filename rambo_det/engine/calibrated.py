"""Calibrates a model; writes its checkpoint, class thresholds and a reliability diagram."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_context
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from ..data.mapper import ErrorReportingMapper
from ..errors import InputError
from ..evaluation.calibration import Calibration, calibrate, draw_reliability
from ..modeling.classifier import Classifier
from .checkpointer import CALIBRATION_FILES, RAW_FILE, load_checkpoint
from .files import atomic_write
from .saved_model import ground_truth_of

_THRESHOLDS, _PICTURE = CALIBRATION_FILES
#: Maximum number of images that a calibration is fitted to.
MAX_IMAGES = 500


def write_calibrated(
    model: nn.Module,
    calibration: Calibration,
    file: Path,
    classes: list[str],
    data: str,
    **extra_state: Any,
) -> None:
    """Rescales a model; writes its checkpoint, and beside it thresholds and a reliability diagram.

    ``file`` is the path of the checkpoint. ``data`` is the name of the dataset that the calibration
    was fitted to. ``extra_state`` has further entries for the checkpoint.
    """
    from matplotlib.figure import Figure

    rescaling, right = calibration.rescaling, calibration.right
    Classifier(model).apply(rescaling)
    fitted = {"factor": float(rescaling.factor), "shift": rescaling.shift.tolist(), "data": data}
    with atomic_write(str(file), "wb") as stream:
        torch.save({"model": model.state_dict(), "calibration": fitted, **extra_state}, stream)
    content = {
        "weights": file.name,
        "data": data,
        "calibration error in percent": [round(error, 3) for error in calibration.errors],
        "all": calibration.threshold,
        "classes": dict(zip(classes, calibration.thresholds, strict=True)),
    }
    with atomic_write(str(file.with_name(_THRESHOLDS)), "w") as stream:
        json.dump(content, stream, indent=1)
    figure = Figure(figsize=(5, 5), layout="constrained")
    curves = [("raw", calibration.raw, right), ("calibrated", calibration.scores, right)]
    draw_reliability(figure.add_subplot(), curves)
    with atomic_write(str(file.with_name(_PICTURE)), "wb") as stream:
        figure.savefig(stream, dpi=100)


def labelled_images(name: str, mapper: Any, max_images: int) -> tuple[Any, COCO]:
    """Returns a loader of up to ``max_images``, spread over a dataset, and their annotations."""
    records = DatasetCatalog.get(name)  # first: this call may create the annotation file
    records = records[:: -(-len(records) // max_images)]
    # The default sampler gives each process only a part, but a single process calibrates.
    mapper, sampler = ErrorReportingMapper(mapper), SequentialSampler(records)
    loader = build_detection_test_loader(records, mapper=mapper, sampler=sampler)
    truth = ground_truth_of(name)
    ids = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or {}
    if ids and [ids.get(i) for i in sorted(truth.getCatIds())] != list(range(len(ids))):
        fault = f"the category ids of {name} are not in the order of its classes"
        raise InputError(f"{fault}: register its json with --register-coco")
    return tqdm(loader, desc="calibrate", unit="image", disable=None), truth


def calibrate_final(model: nn.Module, mapper: Any, folder: Path, data: str) -> str:
    """Calibrates ``model_final.pth``, whose raw weights are saved as ``model_raw.pth``.

    ``model`` must have the weights of ``model_final.pth``. Returns a summary in one line. If no
    calibration fits the dataset ``data``, the line says why, and all files stay unchanged.
    """
    model = getattr(model, "module", model)
    file, raw = folder / "model_final.pth", folder / RAW_FILE
    try:
        if getattr(model, "proposal_generator", model) is None:
            raise InputError("the model needs precomputed proposals")
        with inference_context(model):
            calibration = calibrate(model, *labelled_images(data, mapper, MAX_IMAGES))
    except InputError as error:
        return f"Calibration skipped; the scores in model_final.pth are uncalibrated: {error}"
    if not raw.is_file():  # raw exists if a finished, calibrated run is resumed
        with atomic_write(str(raw), "wb") as stream, file.open("rb") as source:
            shutil.copyfileobj(source, stream)
    state = load_checkpoint(raw)
    state = {key: state[key] for key in ("iteration", "seed") if key in state}
    classes = list(MetadataCatalog.get(data).thing_classes)
    write_calibrated(model, calibration, file, classes, data, **state)
    before, after = calibration.errors
    return (
        f"Calibrated on {data}: calibration error {before:.1f} % before, {after:.1f} % after; "
        f"uncalibrated weights: {RAW_FILE}; per-class thresholds: {_THRESHOLDS}; single threshold "
        f"for all classes: SCORE_THRESH_TEST {calibration.threshold:.3g}"
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
        thresholds = {name: float(score) for name, score in content["classes"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = f"{file} is not what rambo-calibrate wrote ({error})"
        raise InputError(f"{why}: delete it, or use --threshold") from None
    if list(thresholds) != classes:
        raise InputError(f"{file} lists other classes than the model: delete it or use --threshold")
    return list(thresholds.values())
