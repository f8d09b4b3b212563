"""What the runs of a comparison have come to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from ..engine.saved import load_truth
from ..errors import InputError
from .calibration import calibration
from .matches import DETECTIONS, Matches, run_matches
from .plan import Plan, Run
from .precision import average_precision, metrics
from .record import damaged, read_metrics, read_record

#: Metrics in the order in which they are shown; those of classes follow.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ECE", "ECE refit", "training minutes")


@dataclass
class Measured:
    """A run with what it left.

    Attributes:
        run: which.
        result: for json; ``metrics`` is empty if the run is not finished.
        matches: of its last evaluation; None likewise.
    """

    run: Run
    result: dict[str, Any]
    matches: Matches | None


def truth_file(plan: Plan, data: str) -> str:
    """COCO json of the set that runs on this data are evaluated on.

    Raises:
        InputError: there is none: the set is in another format and no run has been evaluated yet.
    """
    name = plan.test_sets[data]
    file = MetadataCatalog.get(name).get("json_file")
    # Detectron2's evaluator writes one for its sets of other formats.
    for run in plan.runs:
        converted = run.folder / "inference" / f"{name}_coco_format.json"
        if file is None and run.data == data and converted.is_file():
            file = str(converted)
    if file is None:
        raise InputError(f"{data}: no run has finished: there is nothing to compare")
    return str(file)


def class_names(plan: Plan, data: str) -> list[str]:
    """The classes in the order of their category ids, as :class:`.matches.Matches` has them."""
    truth = load_truth(truth_file(plan, data))
    return [item["name"] for item in truth.loadCats(sorted(truth.getCatIds()))]


def collect(plan: Plan) -> list[Measured]:
    """All runs of the plan, in its order; InputError where a finished one lacks what it left."""
    return [_measure(plan, run) for run in plan.runs]


def _measure(plan: Plan, run: Run) -> Measured:
    record = read_record(run.folder)
    result: dict[str, Any] = {
        "data": run.data,
        "variant": run.variant,
        "seed": run.seed,
        "folder": str(run.folder),
        **{key: record.get(key) for key in ("status", "error", "source", "command")},
        "metrics": {},
        "evaluations": _evaluations(run),
    }
    if result["status"] != "finished":
        return Measured(run, result, None)
    if not result["evaluations"]:
        raise damaged(run.folder, "metrics.json has no evaluation")
    if not (run.folder / DETECTIONS).is_file():  # nor may there be a truth file then
        raise damaged(run.folder, f"{DETECTIONS} is missing")
    matches = run_matches(run.folder, truth_file(plan, run.data))
    # Not as the evaluator logs them: it has no AP for a single class, and none without a detection.
    images = np.ones((1, matches.positives.shape[1]), np.int32)
    aps = metrics(average_precision(matches, images), class_names(plan, run.data))
    measured = {name: float(value[0]) for name, value in aps.items()}
    found = {**result["evaluations"][-1], **_without_nan({**measured, **calibration(matches)})}
    times = [line["time"] for line in read_metrics(run.folder) if line.get("time")]
    # Of the iterations that were done: RAMBO_TRAIN.PATIENCE may have ended it before the last.
    done = found["iteration"]
    found["training minutes"] = statistics.median(times) * done / 60 if times else None
    classes = [name for name in found if name.startswith("AP-")]
    result["metrics"] = {name: found.get(name) for name in (*METRICS, *classes)}
    return Measured(run, result, matches)


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """Metrics in percent at each iteration that was evaluated."""
    found: dict[int, dict[str, Any]] = {}
    for line in read_metrics(run.folder):
        values = {k.removeprefix("bbox/"): v for k, v in line.items() if k.startswith("bbox/")}
        if values:
            # The last one is written once training has ended, under the number of the next step.
            iteration = min(line["iteration"] + 1, run.iterations)
            found[iteration] = {"iteration": iteration, **_without_nan(values)}
            for name in ("AP", "AP50", "AP75"):  # NaN: nothing was detected
                found[iteration][name] = found[iteration].get(name) or 0.0
    return [found[iteration] for iteration in sorted(found)]


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    # A metric that does not apply is NaN, which json has no word for.
    return {key: value if value == value else None for key, value in values.items()}
