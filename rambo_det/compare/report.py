"""A comparison as one html file that needs nothing else."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..engine.files import AtomicFiles
from . import figures
from .collect import Measured, class_names, truth_file
from .losses import TITLES
from .pictures import disagreements
from .plan import Plan
from .words import (
    cautions,
    class_rows,
    difference_rows,
    loss_rows,
    number,
    verdict,
    with_intervals,
)

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
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["number"] = number
    environment.filters["shell"] = lambda words: shlex.join(words or [])
    variants = list(plan.variants.values())
    html = environment.get_template("report.html.jinja").render(
        results=results,
        titles=[variant.title for variant in variants],
        losses=list(dict.fromkeys(variant.loss for variant in variants)),
        loss_titles=TITLES,
        with_keys=any(variant.opts for variant in variants),
        seeds=sorted({run.seed for run in plan.runs}),
        verdicts=[
            {"data": data, **verdict(results, data, variant)}
            for data in plan.test_sets
            for variant in results["data"][data]["differences"]
        ],
        intervals=_uri(_intervals(results)),
        fewest_seeds=min(
            (
                len(found["seeds"])
                for part in results["data"].values()
                for found in part["differences"].values()
                if found["seeds"]
            ),
            default=0,
        ),
        trained_on=sum(plan.trained_on.values()),
        parts=[_part(plan, measured, results, data) for data in plan.test_sets],
        failed=[item.result for item in measured if item.result["status"] == "failed"],
    )
    with AtomicFiles(None).open(str(file), "w", encoding="utf-8") as f:
        f.write(html)


def _intervals(results: dict[str, Any]) -> bytes | None:
    rows = []
    reference = results["variants"][results["reference"]]["title"]
    for data, part in results["data"].items():
        for variant, found in part["differences"].items():
            value = found["metrics"].get("AP")
            if value is not None and value["low"] is not None:
                title = results["variants"][variant]["title"]
                label = f"{data}: {title} less {reference}"
                rows.append((label, value, verdict(results, data, variant)["kind"]))
    return figures.intervals(rows) if rows else None


def _part(
    plan: Plan, measured: Sequence[Measured], results: dict[str, Any], data: str
) -> dict[str, Any]:
    """What the template shows of one data set."""
    by_variant = {
        name: [
            item
            for item in measured
            if (item.run.data, item.run.variant) == (data, name) and item.matches is not None
        ]
        for name in plan.variants
    }
    chosen = _chosen(results, data, [name for name, runs in by_variant.items() if runs])
    cells = {plan.variants[name].title: by_variant[name] for name in chosen}
    return {
        "name": data,
        "cautions": cautions(results, data),
        "with_intervals": with_intervals(results["data"][data]),
        "rows": loss_rows(results, data),
        "classes": class_rows(results, data),
        "differences": difference_rows(results, data),
        "best": results["data"][data]["best"],
        "left_out": len(plan.variants) - len(chosen),
        "precision": _uri(figures.precision_recall(cells, class_names(plan, data)))
        if cells
        else None,
        "scores": _uri(figures.score_distributions(cells)) if cells else None,
        "training": _uri(figures.over_training(cells)) if cells else None,
        "pictures": [
            _pictures(plan, by_variant, name, data)
            for name in chosen
            if name != results["reference"]
        ],
    }


def _chosen(results: dict[str, Any], data: str, names: list[str]) -> list[str]:
    """The losses in the plots: all, or the reference and those of the highest AP, in order."""
    losses = results["data"][data]["losses"]
    ranked = sorted(names[1:], key=lambda n: -losses[n]["metrics"].get("AP", {"mean": 0})["mean"])
    kept = {*names[:1], *ranked[: _MOST_LOSSES - 1]}
    return [name for name in names if name in kept]


def _pictures(
    plan: Plan, by_variant: dict[str, list[Measured]], variant: str, data: str
) -> dict[str, Any]:
    reference = next(iter(plan.variants))
    ours = {item.run.seed: item for item in by_variant[variant]}
    theirs = {item.run.seed: item for item in by_variant[reference]}
    seeds = sorted(ours.keys() & theirs.keys())
    titles = (plan.variants[reference].title, plan.variants[variant].title)
    found = []
    if seeds:
        found = disagreements(
            [theirs[seed] for seed in seeds],
            [ours[seed] for seed in seeds],
            titles,
            truth_file(plan, data),
            plan.test_sets[data],
            class_names(plan, data),
        )
    images = [
        {
            "image": item.image,
            "file": item.file,
            "seed": item.seed,
            "difference": item.difference,
            "panels": {title: _uri(jpeg, "image/jpeg") for title, jpeg in item.pictures.items()},
        }
        for item in found
    ]
    return {"titles": titles, "images": images}


def _uri(data: bytes | None, kind: str = "image/svg+xml") -> str | None:
    return None if data is None else f"data:{kind};base64,{base64.b64encode(data).decode()}"
