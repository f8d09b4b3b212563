"""A comparison as one html file that needs nothing else."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..engine.files import whole_file
from ..engine.saved import load_truth
from . import figures
from .pictures import disagreements
from .plan import Plan
from .results import Measured, class_names, truth_file
from .specs import TITLES
from .text import cautions, grid, number, tables, verdict

_MOST_LOSSES = 6  # in a plot


def write_report(
    plan: Plan, measured: Sequence[Measured], results: dict[str, Any], file: Path
) -> None:
    """Writes the report.

    Args:
        plan: what was to be run.
        measured: its runs.
        results: of :func:`.results.compare`.
        file: the html file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(number=number, shell=lambda words: shlex.join(words or []))
    differences = [
        (data, variant, found)
        for data, part in results["data"].items()
        for variant, found in part["differences"].items()
    ]
    reference = plan.variants[results["reference"]].title
    rows = [
        (f"{data}: {plan.variants[variant].title} less {reference}", found["metrics"]["AP"])
        for data, variant, found in differences
        if found["metrics"].get("AP", {"low": None})["low"] is not None
    ]
    html = environment.get_template("report.html.jinja").render(
        results=results,
        variants=list(plan.variants.values()),
        losses=list(dict.fromkeys(variant.loss for variant in plan.variants.values())),
        loss_titles=TITLES,
        seeds=len({run.seed for run in plan.runs}),
        verdicts=[(data, verdict(results, data, variant)) for data, variant, _ in differences],
        intervals=_uri(figures.intervals(rows)) if rows else None,
        fewest_seeds=min((len(f["seeds"]) for *_, f in differences if f["seeds"]), default=0),
        trained_on=sum(plan.trained_on.values()),
        parts=[_part(plan, measured, results, data) for data in plan.test_sets],
        failed=[item.result for item in measured if item.result["status"] == "failed"],
    )
    with whole_file(str(file), "w", encoding="utf-8") as f:
        f.write(html)


def _part(
    plan: Plan, measured: Sequence[Measured], results: dict[str, Any], data: str
) -> dict[str, Any]:
    """What the template shows of one data set."""
    runs: dict[str, list[Measured]] = {}
    for item in measured:
        if item.run.data == data and item.matches is not None:
            runs.setdefault(item.run.variant, []).append(item)
    losses = results["data"][data]["losses"]
    chosen = shown_losses(
        {n: losses[n]["metrics"]["AP"]["mean"] for n in plan.variants if n in runs}
    )
    cells = {plan.variants[name].title: runs[name] for name in chosen}
    classes = class_names(plan, data)
    plots: dict[str, bytes | None] = {}
    if cells:
        plots = {
            "Precision and recall": figures.precision_recall(cells, classes),
            "Scores of right and wrong detections": figures.score_distributions(cells),
            "AP while training": figures.over_training(cells),
        }
    reference = next(iter(plan.variants))
    pictures = {}
    for name in (name for name in chosen if name != reference):
        seeds = {item.run.seed: item for item in runs.get(reference, [])}
        pairs = [(seeds[b.run.seed], b) for b in runs[name] if b.run.seed in seeds]
        titles = (plan.variants[reference].title, plan.variants[name].title)
        truth = load_truth(truth_file(plan, data))
        found = list(disagreements(pairs, titles, truth, plan.test_sets[data], classes) if pairs
                     else ())  # fmt: skip
        for one in found:
            one["panels"] = {k: _uri(v, "image/jpeg") for k, v in one["panels"].items()}
        pictures[titles] = found
    return {
        "name": data,
        "cautions": cautions(results, data),
        "tables": {
            title: Markup(grid(rows, "html")) for title, rows in tables(results, data).items()
        },
        "best": results["data"][data]["best"],
        "left_out": len(plan.variants) - len(chosen),
        "plots": {title: _uri(plot) for title, plot in plots.items() if plot},
        "pictures": pictures,
    }


def shown_losses(aps: dict[str, float]) -> list[str]:
    """The losses in the plots: all, or the first and those of the highest AP, in order."""
    first, *others = [*aps] or [""]
    kept = {first, *sorted(others, key=lambda name: -aps[name])[: _MOST_LOSSES - 1]}
    return [name for name in aps if name in kept]


def _uri(data: bytes | None, kind: str = "image/svg+xml") -> str | None:
    return None if data is None else f"data:{kind};base64,{base64.b64encode(data).decode()}"
