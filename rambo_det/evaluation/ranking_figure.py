"""Pictures of how a detector ranks one class: its curve, all ranks, and detections as crops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from .ranking import RankedClass

TRUE, FALSE = "#2166ac", "#d6604d"  # told apart by colour-blind people too
_CROPS = 10
_LEAST_CROP_PX = 24
_AROUND = 0.35  # of the box's longer side, shown on each side

#: From an image id to the image, ``(H, W, 3)`` uint8 RGB, and the objects of the class in it,
#: ``(G, 4)`` x, y, width, height.
Look = Callable[[Any], tuple[np.ndarray, np.ndarray]]


def draw_class(ranked: RankedClass, iou: float, look: Look) -> np.ndarray:
    """One class as a picture, ``(H, W, 3)`` uint8 RGB."""
    figure = Figure(figsize=(15, 3.5), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    _curve(figure.add_axes((0.035, 0.15, 0.19, 0.68)), ranked)
    chosen = choose_crops(ranked)
    ranks = figure.add_axes((0.25, 0.74, 0.74, 0.08))
    _ranks(ranks, ranked, chosen)
    width = 0.74 / _CROPS
    for place, index in enumerate(chosen):
        axis = figure.add_axes((0.25 + place * width + 0.003, 0.14, width - 0.006, 0.36))
        _crop(axis, ranked, index, look)
        # From its place in the ranking to its crop.
        end = ConnectionPatch(
            (index + 1, 0), (0.5, 1.2), ranks.transData, axis.transAxes, color="0.55", lw=0.8
        )  # fmt: skip
        figure.add_artist(end)
    lost = ranked.ap_ideal - ranked.ap
    figure.text(
        0.035, 0.92, ranked.name, fontsize=15, weight="bold", va="center", ha="left"
    )  # fmt: skip
    figure.text(
        0.25, 0.92,
        f"AP{iou * 100:.0f} {ranked.ap * 100:.1f}.  {lost * 100:.1f} lost to the order: "
        f"{ranked.outranked} of {ranked.true.sum()} true detections have a false one above them.  "
        f"{(1 - ranked.ap_ideal) * 100:.1f} lost to objects that were not found "
        f"({ranked.num_objects - ranked.true.sum()} of {ranked.num_objects}).",
        fontsize=11, va="center", ha="left",
    )  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def choose_crops(ranked: RankedClass) -> list[int]:
    """Which detections to show, by their places in the ranking, ascending.

    The false ones that cost most AP and, below each, the next true one that it outranks.
    """
    costs = ranked.costs()
    chosen: set[int] = set()
    for index in np.argsort(-costs, kind="mergesort"):
        if costs[index] <= 0 or len(chosen) >= _CROPS:
            break
        below = np.flatnonzero(ranked.true[index:])
        pair = {int(index), int(index + below[0])}
        if len(chosen | pair) <= _CROPS:
            chosen |= pair
    for index in range(len(ranked.true)):  # a ranking without a flaw: its top
        if len(chosen) >= min(_CROPS, len(ranked.true)):
            break
        chosen.add(index)
    return sorted(chosen)


def _curve(axis: Axes, ranked: RankedClass) -> None:
    recall, precision = (np.append(0, x) for x in ranked.curve())
    precision[0] = precision[1] if len(precision) > 1 else 1
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = recall[-1]
    axis.fill_between(recall, envelope, 1, step="pre", color=FALSE, alpha=0.25, lw=0)
    axis.axvspan(reached, 1, color="0.88", lw=0)
    axis.plot(recall, precision, color=TRUE, lw=1.5)
    if reached > 0.45:
        axis.text(reached * 0.03, 0.05, "shaded red: AP lost to the order", fontsize=8)
    axis.text(0.985, 0.97, "grey: not found", fontsize=8, ha="right", va="top", rotation=90)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.set_xlabel("recall", fontsize=9, labelpad=1)
    axis.set_ylabel("precision", fontsize=9, labelpad=1)
    axis.tick_params(labelsize=8)


def _ranks(axis: Axes, ranked: RankedClass, chosen: list[int]) -> None:
    last = int(np.flatnonzero(ranked.true).max(initial=-1)) + 1
    shown = max(min(last, 2 * ranked.num_objects), max(chosen, default=0) + 1)
    colors = np.array([_rgb(FALSE), _rgb(TRUE)])[ranked.true[:shown].astype(int)]
    if len(colors):
        axis.imshow(colors[None], aspect="auto", extent=(0.5, len(colors) + 0.5, 0, 1))
    axis.set(yticks=[], xlim=(0.5, shown + 0.5), ylim=(0, 1))
    axis.set_title(
        f"the {shown} highest of {len(ranked.true)} detections in order of score "
        f"({ranked.true[:shown].sum()} of the {ranked.true.sum()} true ones);  blue: true, "
        "red: false",
        fontsize=8.5, loc="left", pad=4,
    )  # fmt: skip
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", labelsize=7, direction="in", pad=-9, length=0, labelcolor="white")


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def _crop(axis: Axes, ranked: RankedClass, index: int, look: Look) -> None:
    image, objects = look(ranked.image_ids[index])
    true = bool(ranked.true[index])
    color = TRUE if true else FALSE
    box = ranked.boxes[index]
    left, top, side = _window(box)
    axis.imshow(_cut(image, left, top, side), extent=(left, left + side, top + side, top))
    for x, y, width, height in objects:
        axis.add_patch(
            Rectangle((x, y), width, height, fill=False, ec="white", lw=1.2, ls=(0, (3, 2)))
        )
    x, y, width, height = box
    axis.add_patch(Rectangle((x, y), width, height, fill=False, ec=color, lw=2))
    axis.set(xlim=(left, left + side), ylim=(top + side, top), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color, lw=3)
    axis.set_title(f"#{index + 1}  {_score(ranked.scores[index])}", fontsize=9, pad=4)
    axis.set_xlabel(
        f"{'true' if true else ranked.reasons[index]}\nIoU {ranked.iou[index]:.2f}",
        fontsize=8.5, color=color, labelpad=4,
    )  # fmt: skip


def _score(score: float) -> str:
    """With as many digits as tell scores near 1 apart."""
    digits = 3 if score < 0.9995 else math.ceil(-math.log10(max(1 - score, 1e-8))) + 1
    return f"{score:.{digits}f}"


def _window(box: np.ndarray) -> tuple[int, int, int]:
    """Left, top and side of a square around a box."""
    x, y, width, height = box
    side = round(max(max(width, height) * (1 + 2 * _AROUND), _LEAST_CROP_PX))
    return round(x + width / 2 - side / 2), round(y + height / 2 - side / 2), side


def _cut(image: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """The square, grey where it leaves the image; reduced if it is large."""
    height, width = image.shape[:2]
    out: Any = np.full((side, side, 3), 225, dtype=np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 > x0 and y1 > y0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return cv2.resize(out, (200, 200), interpolation=cv2.INTER_AREA) if side > 200 else out
