"""What the runs of a comparison have come to: each, each loss, and each loss against the first."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.collect_env import collect_env_info

import rambo_det

from ..engine.files import whole_file
from ..engine.saved import load_truth
from ..errors import InputError
from .intervals import calibration, difference, image_weights, resampled_metrics
from .matches import Matches, average_precision, find_matches, metrics
from .plan import Plan, Run
from .run import damaged, read_metrics, read_record, source_digest

_DETECTIONS = Path("inference", "coco_instances_results.json")

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
    if not (run.folder / _DETECTIONS).is_file():  # nor may there be a truth file then
        raise damaged(run.folder, f"{_DETECTIONS} is missing")
    truth = load_truth(truth_file(plan, run.data))
    try:
        detections = json.loads((run.folder / _DETECTIONS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(run.folder, f"{_DETECTIONS} cannot be read ({error})") from None
    matches = find_matches(truth, detections)
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


def compare(
    plan: Plan, measured: Sequence[Measured], command: str, resamples: int
) -> dict[str, Any]:
    """All numbers, for json.

    Args:
        plan: what was to be run.
        measured: its runs.
        command: that made it.
        resamples: of the images, for the intervals.
    """
    data: dict[str, dict[str, Any]] = {}
    for name, test_set in plan.test_sets.items():
        cells: dict[str, list[Measured]] = {variant: [] for variant in plan.variants}
        for item in measured:
            if item.run.data == name and item.matches is not None:
                cells[item.run.variant].append(item)
        classes = class_names(plan, name)
        data[name] = {
            "test_set": test_set,
            "classes": classes,
            "images": next((_images(item) for cell in cells.values() for item in cell), None),
            "trained_on": plan.trained_on.get(name, 0),
            "losses": {
                variant: {"seeds": [i.run.seed for i in cell], "metrics": _spread(cell)}
                for variant, cell in cells.items()
            },
            "differences": _differences(cells, classes, resamples),
        }
        data[name]["best"] = _best(plan, data[name]["losses"])
    return {
        "command": command,
        "versions": _versions(),
        "environment": collect_env_info(),
        "reference": next(iter(plan.variants)),
        "resamples": resamples,
        # More than one: the runs were made by different versions of the code.
        "sources": sorted({i.result["source"] for i in measured if i.matches is not None}),
        "variants": {
            v.name: {"loss": v.loss, "opts": list(v.opts), "title": v.title}
            for v in plan.variants.values()
        },
        "data": data,
        "runs": [item.result for item in measured],
    }


def _spread(cell: Sequence[Measured]) -> dict[str, dict[str, float | None]]:
    """Metric -> mean and standard deviation over runs; no deviation of one run."""
    result: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(name for item in cell for name in item.result["metrics"]):
        values = [item.result["metrics"].get(name) for item in cell]
        known = [value for value in values if value is not None]
        if known:
            deviation = statistics.stdev(known) if len(known) > 1 else None
            result[name] = {"mean": statistics.mean(known), "std": deviation}
    return result


def _differences(
    cells: dict[str, list[Measured]], classes: list[str], resamples: int
) -> dict[str, Any]:
    """Variant -> metric -> difference from the first variant, over the seeds that both have."""
    images = next((_images(item) for cell in cells.values() for item in cell), 1)
    weights = image_weights(images, resamples if images > 1 else 0)  # of one image all are the same
    weights = np.vstack([np.ones((1, images), weights.dtype), weights])  # first: as they are
    found = {
        variant: {
            item.run.seed: resampled_metrics(item.matches, classes, weights)
            for item in cell
            if item.matches
        }
        for variant, cell in cells.items()
    }
    reference, *others = found
    result: dict[str, Any] = {}
    for variant in others:
        seeds = sorted(found[reference].keys() & found[variant].keys())
        result[variant] = {"seeds": seeds, "metrics": {}}
        for name in found[variant][seeds[0]] if seeds else ():
            pairs = [found[variant][s][name] - found[reference][s][name] for s in seeds]
            per_seed = np.stack(pairs, axis=1)  # (1 + B, S)
            if not np.isnan(per_seed[0]).any():
                interval = difference(list(per_seed[0]), per_seed[1:])
                result[variant]["metrics"][name] = {
                    key: value if math.isfinite(value) else None for key, value in interval.items()
                }
    return result


def _best(plan: Plan, losses: dict[str, Any]) -> dict[str, str]:
    """Loss -> its variant of the highest mean AP, where several have one."""
    aps: dict[str, dict[str, float]] = {}
    for variant in plan.variants.values():
        if ap := losses[variant.name]["metrics"].get("AP"):
            aps.setdefault(variant.loss, {})[variant.name] = ap["mean"]
    return {loss: max(of, key=lambda n: of[n]) for loss, of in aps.items() if len(of) > 1}


def save(plan: Plan, results: dict[str, Any], out: Path) -> list[str]:
    """Writes results.json, and first renames that of a comparison that has runs which this one has
    not, with its report.

    Returns:
        The names under which they are kept; none if there were none such.
    """
    files = [out / "results.json", out / "report.html"]
    kept = []
    try:
        earlier = json.loads(files[0].read_text(encoding="utf-8"))["runs"]
        there = {(run["data"], run["variant"], run["seed"]) for run in earlier}
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # nothing that could be kept
        there = set()
    if there - {(run.data, run.variant, run.seed) for run in plan.runs}:
        number = 1
        while any(file.with_suffix(f".{number}{file.suffix}").exists() for file in files):
            number += 1
        kept = [file.rename(file.with_suffix(f".{number}{file.suffix}")).name
                for file in files if file.exists()]  # fmt: skip
    with whole_file(str(files[0]), "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
        f.write("\n")
    return kept


def _images(item: Measured) -> int:
    assert item.matches is not None
    return int(item.matches.positives.shape[1])


def _versions() -> dict[str, str]:
    """What a number may depend on the most; all else is in the environment."""
    return {
        "rambo_det": rambo_det.__version__,
        "rambo_det source": source_digest(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
