"""The plots of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.pictures import missing_glyphs
from .collect import Measured
from .precision import RECALLS, precision_curve

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE = {
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#333a45",
    "xtick.color": "#555c66",
    "ytick.color": "#555c66",
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_MOST_CLASSES = 12
_ODDS = np.linspace(-8, 8, 49)
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)

Cells = dict[str, list[Measured]]  # title of a loss -> its finished runs


def _figure(width: float, height: float, rows: int, columns: int, **kwargs: Any) -> Any:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with missing_glyphs(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": "rambo_det"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)


def intervals(rows: Sequence[tuple[str, dict[str, float], str]]) -> bytes:
    """Differences in AP with their intervals, one below the other.

    Args:
        rows: label, ``mean``, ``low`` and ``high``, kind of verdict.
    """
    colours = {"higher": "#1a7f4b", "lower": "#b3261e"}
    figure, axes = _figure(7.2, 0.75 + 0.42 * len(rows), 1, 1)
    axis = axes[0, 0]
    axis.axvline(0, color="#333a45", linewidth=1)
    for y, (_, value, kind) in enumerate(rows):
        colour = colours.get(kind, "#5f6773")
        axis.plot([value["low"], value["high"]], [y, y], color=colour, linewidth=4, alpha=0.45,
                  solid_capstyle="round")  # fmt: skip
        axis.plot(value["mean"], y, "o", color=colour, markersize=7)
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("difference in AP (percentage points); the bar is the 95 % interval")
    return _svg(figure)


def precision_recall(cells: Cells, classes: list[str]) -> bytes:
    """Precision at each recall, at IoU 0.5: a plot for each class, a line for each loss."""
    objects = _first(cells).positives.sum(axis=1)
    chosen = sorted(np.argsort(-objects, kind="stable")[:_MOST_CLASSES])
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = _figure(2.6 * columns + 0.4, 2.3 * rows + 0.6, rows, columns, sharex=True,
                           sharey=True)  # fmt: skip
    for axis, k in zip(axes.flat, chosen, strict=False):
        for colour, (title, runs) in zip(_colours(cells), cells.items(), strict=True):
            curves = [precision_curve(run.matches, k) for run in runs if run.matches is not None]
            _band(axis, RECALLS, np.array(curves), colour, title)
        axis.set_title(f"{classes[k]} ({objects[k]} objects)", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in axes.flat[len(chosen) :]:
        axis.set_axis_off()
    figure.supxlabel("recall: share of the objects that are found", fontsize=9)
    figure.supylabel("precision: share that is right", fontsize=9)
    _legend(figure, axes[0, 0])
    return _svg(figure)


def score_distributions(cells: Cells) -> bytes:
    """How often right and wrong detections have which score, for each loss."""
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = _figure(3.3 * columns + 0.4, 2.4 * rows + 0.6, rows, columns, sharex=True,
                           sharey=True)  # fmt: skip
    for axis, colour, (title, runs) in zip(axes.flat, _colours(cells), cells.items(), strict=False):
        matches = [run.matches for run in runs if run.matches is not None]
        images = sum(m.positives.shape[1] for m in matches)
        for right, label in ((False, "wrong"), (True, "right")):
            # At IoU 0.5; every run counts alike.
            parts = [m.scores[~m.ignored[0] & (m.right[0] == right)] for m in matches]
            scores = np.clip(np.concatenate(parts), 1e-6, 1 - 1e-6)
            counts, _ = np.histogram(np.log(scores / (1 - scores)), bins=_ODDS)
            axis.stairs(counts / images, _ODDS, fill=right, alpha=0.65 if right else 1.0,
                        color=colour if right else "#5f6773", label=label)  # fmt: skip
        if any(len(m.scores) for m in matches):  # else it warns that there is nothing to scale
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([np.log(p / (1 - p)) for p in _TICKS], [str(p) for p in _TICKS])
        axis.tick_params(axis="x", labelrotation=45)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes.flat[len(cells) :]:
        axis.set_axis_off()
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("detections per image", fontsize=9)
    return _svg(figure)


def over_training(cells: Cells) -> bytes | None:
    """AP at each evaluation; None if there was but the last."""
    figure, axes = _figure(7.2, 3.2, 1, 1)
    most = 0
    for colour, (title, runs) in zip(_colours(cells), cells.items(), strict=True):
        curves = [{e["iteration"]: e.get("AP") for e in run.result["evaluations"]} for run in runs]
        iterations = sorted(set.intersection(*(set(curve) for curve in curves)))
        most = max(most, len(iterations))
        values = np.array([[curve[i] for i in iterations] for curve in curves], float)
        _band(axes[0, 0], np.array(iterations), values, colour, title, marker="o")
    axes[0, 0].set(xlabel="iteration", ylabel="AP on the validation images", ylim=(0, None))
    _legend(figure, axes[0, 0])
    return _svg(figure) if most > 1 else None


def _band(
    axis: Axes, x: np.ndarray, values: np.ndarray, colour: str, label: str, marker: str = ""
) -> None:
    """Mean and standard deviation of (S, X) values."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    axis.plot(x, mean, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3.5)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def _colours(cells: Cells) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(cells))]


def _first(cells: Cells) -> Any:
    return next(iter(cells.values()))[0].matches
