"""Draws detections with Detectron2's Visualizer, and their ranking with Matplotlib."""

import contextlib
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from .ranking import RankedClass

_MIN_PX = 512  # minimum of the longer side; labels would cover a smaller picture
TRUE_COLOR, FALSE_COLOR = "#2166ac", "#d6604d"  # colours that colour-blind people can distinguish
_CROPS = 10
_MIN_CROP_PX = 24
_MARGIN = 0.35  # margin on each side, as a share of the box's longer side

#: A function from an image id to the image, ``(H, W, 3)`` uint8 RGB, and the boxes of the class's
#: objects in the image, ``(G, 4)`` x, y, width, height in px.
ImageLookup = Callable[[Any], tuple[np.ndarray, np.ndarray]]


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[list[int]]:
    """Delays the first Ctrl-C: appends it to the yielded list and raises it after the context.

    Matplotlib's C++ code would turn a KeyboardInterrupt into a ValueError. A second Ctrl-C is
    raised at once. Only the main thread receives Ctrl-C.
    """
    noted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    is_main = threading.current_thread() is threading.main_thread()
    is_handled = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_handled:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if is_handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Silences Matplotlib's warnings, one for each label, about letters missing in its font."""
    with warnings.catch_warnings():
        for message in (r"Glyph \d+ .*missing", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def escape_dollars(text: str) -> str:
    """Escapes dollar signs, between which Matplotlib would expect a formula."""
    return text.replace("$", r"\$")


@ignore_missing_glyphs()
def draw_detections(image: np.ndarray, found: Instances, metadata: Metadata) -> np.ndarray:
    """Draws boxes, masks and keypoints into an image, labelled with class and score in percent.

    Turns ``(H, W, 3)`` into ``(H', W', 3)`` uint8 RGB: enlarges a small image by a whole number.
    ``found`` has ``pred_boxes`` in px of the image, ``pred_classes`` and optionally ``scores``.
    """
    found = found.to("cpu")
    classes, names = found.pred_classes.tolist(), metadata.get("thing_classes") or ()
    # A class always has the same colour. The dataset's own colours take precedence.
    palette = np.asarray(metadata.get("thing_colors") or colormap(rgb=True)) / 255
    labels = [escape_dollars(names[k]) if k < len(names) else f"class {k}" for k in classes]
    if found.has("scores"):
        labels = [f"{x} {s:.0%}" for x, s in zip(labels, found.scores.tolist(), strict=True)]
    drawer = Visualizer(image, metadata, scale=max(1, round(_MIN_PX / max(image.shape[:2]))))
    drawer.overlay_instances(
        boxes=found.pred_boxes,
        masks=list(found.pred_masks.numpy()) if found.has("pred_masks") else None,
        keypoints=found.pred_keypoints if found.has("pred_keypoints") else None,
        labels=labels,
        assigned_colors=[palette[k % len(palette)] for k in classes],
    )
    return drawer.output.get_image()


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arranges pictures in rows, each fitted into a square of 384 px; ``(H, W, 3)`` uint8."""
    pad = partial(ImageOps.pad, size=(384, 384), color="white", centering=(0, 0))
    cells = [pil_to_tensor(pad(Image.fromarray(picture))) for picture in pictures]
    return make_grid(cells, columns, padding=0, pad_value=255).permute(1, 2, 0).numpy()


@ignore_missing_glyphs()
def draw_class(ranked: RankedClass, iou: float, look: ImageLookup) -> np.ndarray:
    """Draws the ranking of one class as a picture, ``(H, W, 3)`` uint8 RGB."""
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
        # A line from the detection's rank to its crop.
        ends = (index + 1, 0), (0.5, 1.2), ranks.transData, axis.transAxes
        figure.add_artist(ConnectionPatch(*ends, color="0.55", lw=0.8))
    lost, found = ranked.ap_ideal - ranked.ap, ranked.true.sum()
    words = (
        f"AP{iou * 100:.0f} {ranked.ap * 100:.1f}.  {lost * 100:.1f} lost to ranking: "
        f"{ranked.outranked} of {found} true detections are outranked by a false one.  "
        f"{(1 - ranked.ap_ideal) * 100:.1f} lost to missed objects "
        f"({ranked.num_objects - found} of {ranked.num_objects})."
    )
    figure.text(0.035, 0.92, escape_dollars(ranked.name), fontsize=15, weight="bold", va="center")
    figure.text(0.25, 0.92, words, fontsize=11, va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def choose_crops(ranked: RankedClass) -> list[int]:
    """Chooses the detections to show, and returns their indices in the ranking, ascending.

    Chooses the false detections that cost most AP, each with the next true detection below. Fills
    the remaining places with the top of the ranking.
    """
    costs, hits = ranked.ap_costs(), np.flatnonzero(ranked.true)
    chosen: set[int] = set()
    for index in np.argsort(-costs, kind="mergesort"):
        if costs[index] > 0:
            pair = {int(index), int(hits[np.searchsorted(hits, index)])}
            chosen |= pair if len(chosen | pair) <= _CROPS else set()
    others = [index for index in range(len(ranked.true)) if index not in chosen]
    return sorted([*chosen, *others[: _CROPS - len(chosen)]])


def _curve(axis: Axes, ranked: RankedClass) -> None:
    found = np.cumsum(ranked.true)
    recall = np.append(0, found / max(ranked.num_objects, 1))
    precision = found / np.arange(1, len(found) + 1)
    precision = np.append(precision[:1] if len(found) else 1, precision)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    axis.fill_between(recall, envelope, 1, step="pre", color=FALSE_COLOR, alpha=0.25, lw=0)
    axis.axvspan(recall[-1], 1, color="0.88", lw=0)
    axis.plot(recall, precision, color=TRUE_COLOR, lw=1.5)
    if recall[-1] > 0.45:
        axis.text(recall[-1] * 0.03, 0.05, "shaded red: AP lost to ranking", fontsize=8)
    axis.text(0.985, 0.97, "grey: missed objects", fontsize=8, ha="right", va="top", rotation=90)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.set_xlabel("recall", fontsize=9, labelpad=1)
    axis.set_ylabel("precision", fontsize=9, labelpad=1)
    axis.tick_params(labelsize=8)


def _ranks(axis: Axes, ranked: RankedClass, chosen: list[int]) -> None:
    last = int(np.flatnonzero(ranked.true).max(initial=-1)) + 1
    number = max(min(last, 2 * ranked.num_objects), max(chosen, default=0) + 1)
    shown = ranked.true[:number]
    if not len(shown):
        axis.set_title("nothing of this class was detected", fontsize=8.5, loc="left", pad=4)
        axis.set_axis_off()
        return
    colours, extent = ListedColormap([FALSE_COLOR, TRUE_COLOR]), (0.5, len(shown) + 0.5, 0, 1)
    axis.imshow(shown[None], colours, aspect="auto", extent=extent, vmin=0, vmax=1)
    axis.set(yticks=[], xlim=(0.5, number + 0.5), ylim=(0, 1))
    axis.set_title(
        f"the {number} highest of {len(ranked.true)} detections in order of score ({shown.sum()} "
        f"of the {ranked.true.sum()} true ones);  blue: true, red: false",
        fontsize=8.5, loc="left", pad=4,
    )  # fmt: skip
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", labelsize=7, direction="in", pad=-9, length=0, labelcolor="white")


def _crop(axis: Axes, ranked: RankedClass, index: int, look: ImageLookup) -> None:
    """Draws a square crop around a detection, grey outside the image."""
    image, objects = look(ranked.image_ids[index])
    color = TRUE_COLOR if ranked.true[index] else FALSE_COLOR
    x, y, width, height = box = ranked.boxes[index]
    side = round(max(max(width, height) * (1 + 2 * _MARGIN), _MIN_CROP_PX))
    left, top = round(x + width / 2 - side / 2), round(y + height / 2 - side / 2)
    x0, y0 = max(left, 0), max(top, 0)
    cut = image[y0 : top + side, x0 : left + side]
    axis.set_facecolor("0.88")
    axis.imshow(cut, extent=(x0, x0 + cut.shape[1], y0 + cut.shape[0], y0))
    for x, y, width, height in objects:
        dashed = Rectangle((x, y), width, height, fill=False, ec="white", lw=1.2, ls=(0, (3, 2)))
        axis.add_patch(dashed)
    axis.add_patch(Rectangle(box[:2], *box[2:], fill=False, ec=color, lw=2))
    axis.set(xlim=(left, left + side), ylim=(top + side, top), xticks=[], yticks=[])
    axis.spines[:].set(color=color, lw=3)
    # Scores near 1 get enough digits to differ.
    score = ranked.scores[index]
    digits = 3 if score < 0.9995 else math.ceil(-math.log10(max(1 - score, 1e-8))) + 1
    axis.set_title(f"#{index + 1}  {score:.{digits}f}", fontsize=9, pad=4)
    words = f"{ranked.reasons[index] or 'true'}\nIoU {ranked.iou[index]:.2f}"
    axis.set_xlabel(escape_dollars(words), fontsize=8.5, color=color, labelpad=4)
