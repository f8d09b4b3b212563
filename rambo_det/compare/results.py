"""The numbers of a comparison: of each run, of each loss, and of each loss against the first."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..engine.files import AtomicFiles
from .plan import Plan, Run
from .record import read_metrics, read_record
from .versions import versions


def compare(plan: Plan, command: str, bootstrap: int) -> dict[str, Any]:
    """All numbers, for json.

    Args:
        plan: whose finished runs are measured.
        command: that made it.
        bootstrap: number of resamples.
    """
    runs = [run_result(run) for run in plan.runs]
    data = {}
    for name, test_set in plan.test_sets.items():
        losses = {}
        for variant in plan.variants:
            mine = [
                r for r in runs if (r["data"], r["variant"]) == (name, variant) and r["metrics"]
            ]
            losses[variant] = {"seeds": [r["seed"] for r in mine], "metrics": spread(mine)}
        data[name] = {"test_set": test_set, "losses": losses}
    variants = {
        v.name: {"loss": v.loss, "opts": list(v.opts), "title": v.title}
        for v in plan.variants.values()
    }
    return {"command": command, "versions": versions(), "variants": variants, "data": data,
            "runs": runs}  # fmt: skip


def run_result(run: Run) -> dict[str, Any]:
    """What one run has come to; ``metrics`` is empty if it is not finished."""
    record = read_record(run.folder)
    finished = record.get("status") == "finished"
    evaluations, times = [], []
    for line in read_metrics(run.folder):
        if isinstance(line.get("time"), float):
            times.append(line["time"])
        found = {k.removeprefix("bbox/"): v for k, v in line.items() if k.startswith("bbox/")}
        if found:
            evaluations.append({"iteration": line["iteration"] + 1, **_without_nan(found)})
    # A run that was resumed has measured some iterations twice.
    by_iteration = {evaluation["iteration"]: evaluation for evaluation in evaluations}
    evaluations = [by_iteration[iteration] for iteration in sorted(by_iteration)]
    metrics = dict(evaluations[-1]) if finished and evaluations else {}
    metrics.pop("iteration", None)
    per_step = statistics.median(times) if times else None
    if metrics and per_step is not None:
        metrics["training minutes"] = per_step * run.iterations / 60
    return {
        "data": run.data, "variant": run.variant, "seed": run.seed, "folder": str(run.folder),
        "status": record.get("status"), "error": record.get("error"),
        "source": record.get("source"), "command": record.get("command"),
        "seconds_per_iteration": per_step, "metrics": metrics, "evaluations": evaluations,
    }  # fmt: skip


def spread(runs: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Metric -> mean and standard deviation over runs; no deviation of one run."""
    names = list(dict.fromkeys(name for run in runs for name in run["metrics"]))
    result: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [run["metrics"].get(name) for run in runs]
        known = [value for value in values if value is not None]
        if known:
            deviation = statistics.stdev(known) if len(known) > 1 else None
            result[name] = {"mean": statistics.mean(known), "std": deviation}
    return result


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    # A metric that does not apply is NaN, which json has no word for.
    return {key: value if value == value else None for key, value in values.items()}


def table(results: dict[str, Any]) -> str:
    """The results as text: a table for each data set."""
    parts = []
    for name, data in results["data"].items():
        rows = []
        for variant, loss in data["losses"].items():
            row = {"loss": results["variants"][variant]["title"], "seeds": len(loss["seeds"])}
            row |= {key: _cell(value) for key, value in loss["metrics"].items()}
            rows.append(row)
        parts.append(f"{name}\n\n" + tabulate(rows, headers="keys", tablefmt="github"))
    return "\n\n".join(parts)


def _cell(value: dict[str, float | None]) -> str:
    mean, deviation = value["mean"], value["std"]
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def save(results: dict[str, Any], file: Path) -> None:
    """Writes the results as json, whole or not at all."""
    with AtomicFiles(None).open(str(file), "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
        f.write("\n")
