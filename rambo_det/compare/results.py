"""The numbers of a comparison: of each run, of each loss, and of each loss against the first."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.files import AtomicFiles
from .bootstrap import difference, image_weights, resampled_metrics
from .collect import Measured, class_names
from .plan import Plan
from .versions import versions

Spread = dict[str, dict[str, float | None]]


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
    data = {}
    for name, test_set in plan.test_sets.items():
        cells = {
            variant: [
                item
                for item in measured
                if (item.run.data, item.run.variant) == (name, variant) and item.matches is not None
            ]
            for variant in plan.variants
        }
        data[name] = {
            "test_set": test_set,
            "classes": class_names(plan, name),
            "images": next(
                (
                    int(item.matches.positives.shape[1])
                    for cell in cells.values()
                    for item in cell
                    if item.matches is not None
                ),
                None,
            ),
            "trained_on": plan.trained_on.get(name, 0),
            "losses": {
                variant: {"seeds": [i.run.seed for i in cell], "metrics": _spread(cell)}
                for variant, cell in cells.items()
            },
            "differences": _differences(cells, class_names(plan, name), resamples),
        }
        data[name]["best"] = _best(plan, data[name]["losses"])
    return {
        "command": command,
        "versions": versions(),
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


def _spread(cell: Sequence[Measured]) -> Spread:
    """Metric -> mean and standard deviation over runs; no deviation of one run."""
    result: Spread = {}
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
    weights: np.ndarray | None = None
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for variant, cell in cells.items():
        found[variant] = {}
        for item in cell:
            assert item.matches is not None
            if weights is None:
                number = item.matches.positives.shape[1]
                every = np.ones((1, number), np.int32)  # the first row: the images as they are
                weights = np.vstack([every, image_weights(number, resamples)])
            found[variant][item.run.seed] = resampled_metrics(item.matches, classes, weights)
    reference, *others = found
    result: dict[str, Any] = {}
    for variant in others:
        seeds = sorted(found[reference].keys() & found[variant].keys())
        result[variant] = {"seeds": seeds, "metrics": {}}
        for name in found[variant][seeds[0]] if seeds else ():
            pairs = [found[variant][s][name] - found[reference][s][name] for s in seeds]
            per_seed = np.stack(pairs, axis=1)  # (1 + B, S)
            if not np.isnan(per_seed[0]).any():
                resampled = per_seed[1:]
                if weights is not None and weights.shape[1] == 1:
                    resampled = resampled[:0]  # one image: each resample is the same
                interval = difference(list(per_seed[0]), resampled)
                result[variant]["metrics"][name] = {
                    key: value if math.isfinite(value) else None for key, value in interval.items()
                }
    return result


def _best(plan: Plan, losses: dict[str, Any]) -> dict[str, str]:
    """Loss -> its variant of the highest mean AP, where several have one."""
    best: dict[str, str] = {}
    for loss in dict.fromkeys(variant.loss for variant in plan.variants.values()):
        mine = [v.name for v in plan.variants.values() if v.loss == loss]
        aps = {name: losses[name]["metrics"].get("AP") for name in mine}
        known = {name: ap["mean"] for name, ap in aps.items() if ap}
        if len(known) > 1:
            best[loss] = max(known, key=lambda name: known[name])
    return best


def set_aside(plan: Plan, out: Path) -> tuple[str, ...]:
    """Renames results and report of a comparison that has runs which this one has not.

    Args:
        plan: of this comparison.
        out: its folder.

    Returns:
        The names under which they are kept; none if there were none such.
    """
    names = ("results.json", "report.html")
    try:
        earlier = json.loads((out / names[0]).read_text(encoding="utf-8"))["runs"]
        there = {(run["data"], run["variant"], run["seed"]) for run in earlier}
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # nothing that could be kept
        return ()
    if there <= {(run.data, run.variant, run.seed) for run in plan.runs}:
        return ()
    number = 1
    while any((out / name.replace(".", f".{number}.")).exists() for name in names):
        number += 1
    kept = [name for name in names if (out / name).exists()]
    for name in kept:
        (out / name).rename(out / name.replace(".", f".{number}."))
    return tuple(name.replace(".", f".{number}.") for name in kept)


def save(results: dict[str, Any], file: Path) -> None:
    """Writes the results as json, whole or not at all."""
    with AtomicFiles(None).open(str(file), "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
        f.write("\n")
