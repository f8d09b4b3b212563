"""What a calibration leaves beside the weights: a checkpoint, thresholds and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..evaluation.calibration import Calibration, draw_reliability
from ..modeling.classifier import Classifier
from .files import whole_file

_THRESHOLDS = "thresholds.json"
_PICTURE = "reliability.png"


def write_calibrated(
    model: nn.Module,
    found: Calibration,
    file: Path,
    classes: list[str],
    data: str,
    kept: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint of the stock architecture, and beside it thresholds and a diagram.

    Args:
        model: is rescaled.
        found: the calibration.
        file: of the checkpoint.
        classes: names of the K classes.
        data: name of the data set that it was fitted to.
        kept: what else the checkpoint has.
    """
    from matplotlib.figure import Figure

    Classifier(model).apply(found.rescaling)
    calibration = {
        "factor": float(found.rescaling.factor),
        "shift": found.rescaling.shift.tolist(),
        "data": data,
    }
    state = {"model": model.state_dict(), "calibration": calibration, **(kept or {})}
    with whole_file(str(file), "wb") as stream:
        torch.save(state, stream)
    before, after = found.errors
    content = {
        "weights": file.name,
        "data": data,
        "calibration error in percent": [round(before, 3), round(after, 3)],
        "all": found.threshold,
        "classes": dict(zip(classes, found.thresholds, strict=True)),
    }
    with whole_file(str(file.with_name(_THRESHOLDS)), "w") as stream:
        json.dump(content, stream, indent=1)
    figure = Figure(figsize=(5, 5), layout="constrained")
    curves = [("raw", found.raw, found.right), ("calibrated", found.scores, found.right)]
    draw_reliability(figure.add_subplot(), curves)
    with whole_file(str(file.with_name(_PICTURE)), "wb") as stream:
        figure.savefig(stream, dpi=100)


def read_thresholds(weights: str, classes: list[str]) -> list[float] | None:
    """The threshold of each class for a calibrated checkpoint; None if there are none for it.

    Raises InputError if their file cannot be read, or is of other classes.
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
        raise InputError(
            f"{file} is of the classes {', '.join(found)}, not {', '.join(classes)}: delete it, or "
            "give --threshold"
        )
    return list(found.values())
