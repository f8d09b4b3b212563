"""Writes the report of a comparison as one self-contained html file."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..engine.files import atomic_write
from . import figures
from .pictures import COLOURS, disagreements
from .plan import Plan
from .results import RunResult, finished, ground_truth_of
from .specs import LOSS_TITLES
from .text import dataset_warnings, format_number, tables, verdict

_MOST_LOSSES = 6  # number of losses in a plot, at most


def write_report(
    plan: Plan, measured: Sequence[RunResult], results: dict[str, Any], file: Path
) -> None:
    """Writes the report on ``results``, which :func:`.results.compare` returned, to ``file``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(
        format_number=format_number, shell=lambda words: shlex.join(words or []),
        uri=lambda data, kind: f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
    )  # fmt: skip
    titles = {name: variant.title for name, variant in plan.variants.items()}
    differences = [
        (f"{data}: {titles[variant]} less {titles[results['reference']]}", found)
        for data, part in results["data"].items()
        for variant, found in part["differences"].items()
        if found["seeds"]
    ]
    aps = [(label, found["metrics"].get("AP", {"low": None})) for label, found in differences]
    rows = [(label, ap) for label, ap in aps if ap["low"] is not None]
    html = environment.get_template("report.html.jinja").render(
        results=results, variants=list(plan.variants.values()), loss_titles=LOSS_TITLES,
        seeds=len({run.seed for run in plan.runs}), verdict=verdict, tables=tables,
        dataset_warnings=dataset_warnings, intervals=figures.draw_intervals(rows) if rows else None,
        fewest_seeds=min((len(found["seeds"]) for _, found in differences), default=0),
        shown={data: _shown(plan, measured, results, data) for data in plan.test_sets},
        colours=COLOURS,
    )  # fmt: skip
    with atomic_write(str(file), "w", encoding="utf-8") as f:
        f.write(html)


def _shown(
    plan: Plan, measured: Sequence[RunResult], results: dict[str, Any], data: str
) -> dict[str, Any]:
    """Returns plots and pictures for one dataset, and the number of losses that they leave out."""
    losses, runs = results["data"][data]["losses"], finished(plan, measured, data)
    chosen = shown_losses({n: losses[n]["metrics"]["AP"]["mean"] for n in runs if runs[n]})
    titles = {name: plan.variants[name].title for name in plan.variants}
    cells = {titles[name]: runs[name] for name in chosen}
    plots = {
        "Precision and recall": figures.precision_recall,
        "Scores of right and wrong detections": figures.score_distributions,
        "Scores as probabilities": figures.reliability,
        "AP while training": figures.ap_during_training,
    }
    reference = next(iter(plan.variants))
    first = {item.run.seed: item for item in runs[reference]}
    pictures = {}
    for name in (name for name in chosen if name != reference):
        pairs = [(first[item.run.seed], item) for item in runs[name] if item.run.seed in first]
        if pairs:
            both = (titles[reference], titles[name])
            truth, test_set = ground_truth_of(plan, data), plan.test_sets[data]
            pictures[both] = list(disagreements(pairs, both, truth, test_set))
    return {
        "left_out": len(plan.variants) - len(chosen),
        "plots": {title: draw(cells) for title, draw in plots.items() if cells},
        "pictures": pictures,
    }


def shown_losses(aps: dict[str, float]) -> list[str]:
    """Returns the losses to plot, in order: all, or the first and those of the highest AP."""
    first, *others = [*aps] or [""]
    kept = {first, *sorted(others, key=lambda name: -aps[name])[: _MOST_LOSSES - 1]}
    return [name for name in aps if name in kept]
