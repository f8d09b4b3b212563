"""Plots of a comparison report, returned as the bytes of an SVG or PNG file."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.special import logit

from ..evaluation.calibration import draw_reliability
from ..evaluation.matches import RECALLS
from ..evaluation.pictures import escape_dollars, ignore_missing_glyphs
from .results import RunsByVariant

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e8ec", "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "rambo_det", "axes.titlesize": 9,
}  # fmt: skip
_MAX_CLASSES = 12
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def _figure(number: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Returns a figure and a grid of ``number`` plots, each ``width`` x ``height`` inches large."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure((width * columns + 0.4, height * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axis in axes[number:]:
        axis.set_axis_off()
    for axis in axes[number - columns : number]:  # with no plot below, also in the last row but one
        axis.tick_params(labelbottom=True)
    return figure, axes[:number]


def _title(text: str) -> str:
    """Returns a title or label on as many lines as it needs."""
    return textwrap.fill(text, 40, break_on_hyphens=False)


def _save(figure: Figure, image_format: str = "svg") -> bytes:
    buffer = io.BytesIO()
    # Leaves out the date and the Matplotlib version, so that equal plots give equal files.
    metadata = {"Date": None} if image_format == "svg" else {"Software": None}
    with ignore_missing_glyphs():
        figure.savefig(buffer, format=image_format, metadata=metadata, dpi=120)
    return buffer.getvalue()


@matplotlib.rc_context(_STYLE)
def draw_intervals(rows: Sequence[tuple[str, Any]]) -> bytes:
    """Draws differences in AP with their intervals, one below the other.

    Each row is a label and a dict of ``mean``, ``low`` and ``high``.
    """
    labels = [_title(label) for label, _ in rows]
    row_height = 0.42 + 0.12 * max(label.count("\n") for label in labels)
    figure, (axis,) = _figure(1, 1, 6.8, 0.2 + row_height * len(rows))
    axis.axvline(0, color="#333a45", linewidth=1)
    for y, (_, value) in enumerate(rows):
        axis.plot([value["low"], value["high"]], [y, y], color=_COLOURS[0], linewidth=3, alpha=0.5)
        axis.plot(value["mean"], y, "o", color=_COLOURS[0], markersize=7)
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("difference in AP (percentage points); the bar is the 95 % interval")
    return _save(figure)


@matplotlib.rc_context(_STYLE)
def precision_recall(cells: RunsByVariant) -> bytes:
    """Draws precision over recall at IoU 0.5: a plot per frequent class, with a line per loss."""
    first = next(iter(cells.values()))[0].matches
    objects = first.positives.sum(axis=1)
    chosen = sorted(np.argsort(-objects, kind="stable")[:_MAX_CLASSES])
    # With few classes, the plots are wider, so that the legend fits above them.
    figure, axes = _figure(len(chosen), 4, max(2.6, 6 / len(chosen)), 2.3)
    for axis, k in zip(axes, chosen, strict=True):
        for colour, (title, runs) in enumerate(cells.items()):
            curves = np.array([run.matches.curves[k] for run in runs])
            _plot_mean_band(axis, RECALLS, curves, colour, title)
        axis.set_title(escape_dollars(f"{first.classes[k]} ({objects[k]} objects)"))
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    figure.supxlabel("recall: share of objects found", fontsize=9)
    figure.supylabel("precision: share of right detections", fontsize=9)
    # On the right, away from the label of the y axis, which may reach up to the legend.
    handles, columns = axes[0].get_legend_handles_labels(), min(3, len(chosen) + 1)
    figure.legend(*handles, loc="outside upper right", ncols=columns)
    return _save(figure)


@matplotlib.rc_context(_STYLE)
def score_distributions(cells: RunsByVariant) -> bytes:
    """Draws, for each loss, histograms of the scores of right and wrong detections at IoU 0.5."""
    figure, axes = _figure(len(cells), 3, 3.3, 2.4)
    for axis, (title, runs) in zip(axes, cells.items(), strict=True):
        matches = [run.matches for run in runs]
        images = sum(m.positives.shape[1] for m in matches)
        for right, label in ((False, "wrong"), (True, "right")):
            parts = [scores[hits == right] for scores, hits in (m.counted for m in matches)]
            # The outer bins collect the scores beyond, so that the plot shows all detections.
            logits = np.clip(logit(np.concatenate(parts)), -8, 8)
            counts, edges = np.histogram(logits, bins=48, range=(-8, 8))
            axis.stairs(counts / images, edges, fill=right, alpha=0.65, label=label)
        if any(len(m.scores) for m in matches):  # Matplotlib warns about a log axis without data
            axis.set_yscale("log")
        axis.set_title(_title(title))
        axis.set_xticks(logit(_TICKS), [str(p) for p in _TICKS], rotation=45)
        axis.legend(fontsize=8)
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("detections per image", fontsize=9)
    return _save(figure)


@matplotlib.rc_context(_STYLE)
def reliability(cells: RunsByVariant) -> bytes:
    """Draws the share of right detections at IoU 0.5 over the score, as trained and calibrated."""
    figure, axes = _figure(len(cells), 3, 3.3, 3.3)
    for axis, (title, runs) in zip(axes, cells.items(), strict=True):
        curves = []
        for label in ("as trained", "calibrated"):
            matches = [run.matches if label == "as trained" else run.calibrated for run in runs]
            parts = [m.counted for m in matches if m is not None]
            if parts:
                curves.append((label, *map(np.concatenate, zip(*parts, strict=True))))
        draw_reliability(axis, curves)
        axis.set_title(_title(title))
    return _save(figure)


def ap_during_training(cells: RunsByVariant) -> bytes | None:
    """Draws AP at each evaluation that all seeds of a loss have; None if that is only the last."""
    aps: dict[str, dict[int, list[float]]] = {}
    for title, runs in cells.items():
        curves = [{e["iteration"]: e["AP"] for e in run.result["evaluations"]} for run in runs]
        iterations = sorted(set.intersection(*map(set, curves)))
        aps[title] = {i: [curve[i] for curve in curves] for i in iterations}
    return learning_curves(aps) if max(map(len, aps.values())) > 1 else None


@matplotlib.rc_context(_STYLE)
def learning_curves(aps: dict[str, dict[int, list[float]]], image_format: str = "svg") -> bytes:
    """Draws ``aps``, loss -> iteration -> AP of each seed. The image format is "svg" or "png"."""
    figure, (axis,) = _figure(1, 1, 6.8, 2.6)
    for colour, (title, curve) in enumerate(aps.items()):
        values = np.array(list(curve.values()), float).T
        _plot_mean_band(axis, np.array(list(curve)), values, colour, title)
    axis.set(xlabel="iteration", ylabel="AP on the validation images", ylim=(0, None))
    axis.legend()
    return _save(figure, image_format)


def _plot_mean_band(axis: Any, x: np.ndarray, values: np.ndarray, colour: int, label: str) -> None:
    """Draws the mean of ``values`` (S, X) over ``x`` (X,) in a band of one standard deviation."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    shade = _COLOURS[colour % len(_COLOURS)]
    line = ("-", "--", "-.", ":")[colour % 4]
    axis.plot(x, mean, line, color=shade, label=_title(label), linewidth=1.6)
    axis.fill_between(x, mean - deviation, mean + deviation, color=shade, alpha=0.15, linewidth=0)
