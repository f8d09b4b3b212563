"""Collects the results of a comparison: of each run, of each loss, and against the first loss."""

import json
import math
import os
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
from pycocotools.coco import COCO

import rambo_det

from ..engine.files import atomic_write
from ..engine.folder import CALIBRATED_FOLDER
from ..engine.saved_model import load_ground_truth
from ..errors import InputError
from ..evaluation.calibration import calibration_error
from ..evaluation.matches import Matches, class_names, find_matches, metrics
from .intervals import image_weights, paired_difference
from .plan import Plan, Run
from .run import damaged_run_error, read_metrics, read_record, source_digest

_DETECTIONS = "inference/coco_instances_results.json"

#: Metrics in display order; the AP of each class follows.
METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AP calibrated", "ECE", "ECE calibrated",
    "training minutes",
)  # fmt: skip

RunsByVariant = dict[str, list["RunResult"]]  # variant name or title -> its finished runs


@dataclass
class RunResult:
    """A run with its results."""

    run: Run
    result: dict[str, Any]  # for json; "metrics" is empty if the run is not finished
    matches: Matches | None = None  # of its last evaluation; None if it is not finished
    calibrated: Matches | None = None  # with calibrated scores; None if it was not calibrated


def ground_truth_of(plan: Plan, data: str) -> COCO:
    """Returns the annotations of the test set of this data.

    Raises InputError if the set is not in COCO format and no run has been evaluated yet.
    """
    name = plan.test_sets[data]
    # For a dataset in another format, Detectron2's evaluator writes a COCO json into the folder.
    folders = [run.folder / "inference" for run in plan.runs if run.data == data]
    files = [MetadataCatalog.get(name).get("json_file")]
    files += [file for folder in folders for file in folder.glob(f"{name}_coco_format.json")]
    for file in filter(os.path.isfile, filter(None, files)):  # the shapes may not be drawn yet
        return load_ground_truth(str(file))
    raise InputError(f"{data}: no run has finished, so there is nothing to compare")


def finished(plan: Plan, measured: Sequence[RunResult], data: str) -> RunsByVariant:
    """Returns variant -> its finished runs on this data."""
    done = [item for item in measured if item.run.data == data and item.matches is not None]
    return {name: [item for item in done if item.run.variant == name] for name in plan.variants}


def measure(plan: Plan, run: Run) -> RunResult:
    """Measures a run of a plan; InputError if it is finished but lacks a result file."""
    record = read_record(run.folder)
    result: dict[str, Any] = {
        "data": run.data, "variant": run.variant, "seed": run.seed, "folder": str(run.folder),
        **{key: record.get(key) for key in ("status", "error", "source", "command")},
        "metrics": {}, "evaluations": _evaluations(run),
    }  # fmt: skip
    if result["status"] != "finished":
        return RunResult(run, result)
    if not result["evaluations"]:
        raise damaged_run_error(run.folder, "metrics.json has no evaluation")
    matches = _matches(plan, run, _DETECTIONS)
    file = f"{CALIBRATED_FOLDER}/{_DETECTIONS}"
    calibrated = _matches(plan, run, file) if (run.folder / file).is_file() else None
    item = RunResult(run, result, matches, calibrated)
    # Computed anew: the evaluator logs no class AP for a single class, and nan without detections.
    ours = {name: float(ap[0]) for name, ap in _metrics(item).items()}
    ours["ECE"] = calibration_error(*matches.counted)
    if calibrated:
        ours["ECE calibrated"] = calibration_error(*calibrated.counted)
    values = {**result["evaluations"][-1], **{name: _finite_or_none(x) for name, x in ours.items()}}
    times = [line["time"] for line in read_metrics(run.folder) if line.get("time")]
    if times:
        # Counts only iterations that were done: RAMBO_TRAIN.PATIENCE may have ended the run early.
        values["training minutes"] = statistics.median(times) * values["iteration"] / 60
    classes = [name for name in values if name.startswith("AP-")]
    result["metrics"] = {name: values.get(name) for name in (*METRICS, *classes)}
    return item


def _matches(plan: Plan, run: Run, name: str) -> Matches:
    """Matches the detections in a file of the run; InputError if it is missing or incomplete."""
    try:
        detections = json.loads((run.folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise damaged_run_error(run.folder, f"{name} cannot be read ({error})") from None
    return find_matches(ground_truth_of(plan, run.data), detections)


def _metrics(item: RunResult, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    values = metrics(item.matches, weights)
    if item.calibrated:
        values["AP calibrated"] = metrics(item.calibrated, weights)["AP"]
    return values


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """Returns the metrics, in percent, of each evaluated iteration."""
    evaluations: dict[int, dict[str, Any]] = {}
    for line in read_metrics(run.folder):
        values = {k[5:]: _finite_or_none(v) for k, v in line.items() if k.startswith("bbox/")}
        if values:
            # The last evaluation is logged after the training, with the next iteration's number.
            iteration = min(line["iteration"] + 1, run.iterations)
            aps = {name: values.get(name) or 0.0 for name in METRICS[:3]}  # None: no detections
            evaluations[iteration] = {"iteration": iteration, **values, **aps}
    return [evaluations[iteration] for iteration in sorted(evaluations)]


def _finite_or_none(value: float) -> float | None:
    """Returns the value, or None for NaN (a metric that does not apply), which json cannot hold."""
    return value if math.isfinite(value) else None


def compare(
    plan: Plan, measured: Sequence[RunResult], command: str, resamples: int
) -> dict[str, Any]:
    """Returns all results as json data; the intervals use ``resamples`` resamples of the images."""
    data: dict[str, dict[str, Any]] = {}
    for name, test_set in plan.test_sets.items():
        truth = ground_truth_of(plan, name)
        cells = finished(plan, measured, name)
        images = [item.matches.positives.shape[1] for cell in cells.values() for item in cell]
        losses = {
            variant: {"seeds": [i.run.seed for i in cell], "metrics": _mean_and_std(cell)}
            for variant, cell in cells.items()
        }
        data[name] = {
            "test_set": test_set,
            "classes": class_names(truth),
            "boxes": [
                len(truth.getAnnIds(catIds=[id_], iscrowd=False))
                for id_ in sorted(truth.getCatIds())
            ],
            "images": images[0] if images else None,
            "trained_on": plan.num_test_images_in_train.get(name, 0),
            "losses": losses,
            "differences": _differences(cells, images[0] if images else 1, resamples),
            "best": _best(plan, losses),
        }
    sources = [item.result["source"] for item in measured if item.matches is not None]
    return {
        "command": command,
        "versions": {  # what affects the numbers most; "environment" has the rest
            "rambo_det": rambo_det.__version__,
            "rambo_det source": source_digest(),
            "torch": torch.__version__,
            "detectron2": detectron2.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "environment": collect_env_info(),
        "reference": next(iter(plan.variants)),
        "resamples": resamples,
        # Several digests mean that the runs were made by different versions of the code.
        "sources": sorted({digest for source in sources for digest in source.split(", ")}),
        "variants": {
            v.name: {"loss": v.loss, "opts": list(v.opts), "title": v.title}
            for v in plan.variants.values()
        },
        "data": data,
        "runs": [item.result for item in measured],
    }


def _mean_and_std(cell: Sequence[RunResult]) -> dict[str, dict[str, float | None]]:
    """Returns metric -> mean and standard deviation over runs; the deviation of one run is None."""
    result: dict[str, dict[str, float | None]] = {}
    for name in cell[0].result["metrics"] if cell else ():
        values = [item.result["metrics"].get(name) for item in cell]
        if known := [value for value in values if value is not None]:
            deviation = statistics.stdev(known) if len(known) > 1 else None
            result[name] = {"mean": statistics.mean(known), "std": deviation}
    return result


def _differences(cells: RunsByVariant, images: int, resamples: int) -> dict[str, Any]:
    """Returns variant -> metric -> difference from the first variant, over their common seeds."""
    # Row 0 has every image once. One image is not resampled, as all resamples would be equal.
    drawn = image_weights(images, resamples if images > 1 else 0)
    weights = np.vstack([np.ones((1, images), drawn.dtype), drawn])
    reference, *others = (
        {item.run.seed: _metrics(item, weights) for item in cell} for cell in cells.values()
    )
    result: dict[str, Any] = {}
    for variant, values in zip(list(cells)[1:], others, strict=True):
        seeds = sorted(reference.keys() & values.keys())
        differences: dict[str, dict[str, float | None]] = {}
        result[variant] = {"seeds": seeds, "metrics": differences}
        both = [run[seed].keys() for run in (reference, values) for seed in seeds]
        for name in [n for n in values[seeds[0]] if all(n in x for x in both)] if seeds else ():
            per_seed = np.stack([values[s][name] - reference[s][name] for s in seeds], axis=1)
            if not np.isnan(per_seed[0]).any():  # per_seed: (1 + B, S)
                interval = paired_difference(list(per_seed[0]), per_seed[1:])
                differences[name] = {k: _finite_or_none(v) for k, v in interval.items()}
    return result


def _best(plan: Plan, losses: dict[str, Any]) -> dict[str, str]:
    """Returns loss -> its variant of highest mean AP, for each loss with several variants."""
    aps: dict[str, dict[str, float]] = {}
    for variant in plan.variants.values():
        if ap := losses[variant.name]["metrics"].get("AP"):
            aps.setdefault(variant.loss, {})[variant.name] = ap["mean"]
    return {loss: max(ap, key=ap.__getitem__) for loss, ap in aps.items() if len(ap) > 1}


def write_results(plan: Plan, results: dict[str, Any], out: Path) -> list[str]:
    """Writes results.json. First renames an earlier results.json and its report if they have runs
    that the plan lacks, or are not of a comparison. Returns the new names of the renamed files."""
    files, renamed = [out / "results.json", out / "report.html"], []
    old_runs: set[Any] = {None}
    try:
        earlier = json.loads(files[0].read_text(encoding="utf-8"))["runs"]
        old_runs = {(run["data"], run["variant"], run["seed"]) for run in earlier}
    except FileNotFoundError:
        old_runs = set()
    except (ValueError, KeyError, TypeError):  # of something else, for example of rambo-predict
        pass
    if old_runs - {(run.data, run.variant, run.seed) for run in plan.runs}:
        number = 1
        while any(file.with_suffix(f".{number}{file.suffix}").exists() for file in files):
            number += 1
        renamed = [file.rename(file.with_suffix(f".{number}{file.suffix}")).name
                   for file in files if file.exists()]  # fmt: skip
    with atomic_write(str(files[0]), "w", encoding="utf-8") as f:
        f.write(json.dumps(results, indent=1) + "\n")
    return renamed
