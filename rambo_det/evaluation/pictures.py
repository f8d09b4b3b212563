"""Pictures of boxes and detections, drawn by Detectron2's Visualizer, a colour a class."""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

_LEAST_PX = 512  # of the longer side; labels would cover a smaller picture


def class_metadata(names: Sequence[str]) -> Metadata:
    """What Detectron2's visualizers need to know of the classes."""
    return Metadata(thing_classes=list(names))


def class_colors(classes: Sequence[int], metadata: Metadata) -> list[Any]:
    """An RGB colour, 0..1, for each class index: always the same, the data set's own if any."""
    own = metadata.get("thing_colors")
    palette = np.asarray(own or colormap(rgb=True)) / 255
    return [palette[k % len(palette)] for k in classes]


@contextlib.contextmanager
def interrupted_after() -> Iterator[None]:
    """Ctrl-C within comes at the end: matplotlib's C++ would make a ValueError of it."""
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not in_main_thread:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def missing_glyphs() -> Iterator[None]:
    """Within, Matplotlib does not warn, for every label, of letters that its font has not."""
    with warnings.catch_warnings():
        for message in (r"Glyph \d+ .*missing", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


@interrupted_after()
@missing_glyphs()
def draw_detections(image: np.ndarray, found: Instances, metadata: Metadata) -> np.ndarray:
    """The image with boxes, masks and keypoints, labelled with class and score in percent.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        found: with ``pred_boxes`` in px of the image and ``pred_classes``; ``scores``, if there.
        metadata: of the classes, see :func:`class_metadata`.

    Returns:
        ``(H', W', 3)`` uint8, RGB; a small image is enlarged by a whole number.
    """
    found = found.to("cpu")
    classes, names = found.pred_classes.tolist(), metadata.get("thing_classes") or ()
    labels = [names[k] if k < len(names) else f"class {k}" for k in classes]
    if found.has("scores"):
        labels = [f"{x} {s:.0%}" for x, s in zip(labels, found.scores.tolist(), strict=True)]
    drawer = Visualizer(image, metadata, scale=max(1, round(_LEAST_PX / max(image.shape[:2]))))
    drawer.overlay_instances(
        boxes=found.pred_boxes,
        masks=list(found.pred_masks.numpy()) if found.has("pred_masks") else None,
        keypoints=found.pred_keypoints if found.has("pred_keypoints") else None,
        labels=labels,
        assigned_colors=class_colors(classes, metadata),
    )
    picture: np.ndarray = drawer.output.get_image()
    return picture


def as_detections(truth: Instances) -> Instances:
    """Annotated boxes as they have to be for :func:`draw_detections`."""
    found = Instances(truth.image_size)
    found.pred_boxes, found.pred_classes = truth.gt_boxes, truth.gt_classes
    return found


def to_rgb(image: torch.Tensor, channels: str) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB of a model's input.

    Args:
        image: ``(3, H, W)``, 0..255.
        channels: the config's INPUT.FORMAT, "RGB" or "BGR".
    """
    array = image.cpu().numpy().transpose(1, 2, 0).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(array[:, :, ::-1] if channels == "BGR" else array)


def grid(pictures: Sequence[np.ndarray], columns: int, cell_px: int = 384) -> np.ndarray:
    """The pictures side by side, each fitted into a square of ``cell_px``; ``(H, W, 3)`` uint8."""
    rows = -(-len(pictures) // columns)
    canvas: Any = np.full((rows * cell_px, columns * cell_px, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        factor = cell_px / max(picture.shape[:2])
        fitted = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        fitted = fitted[:cell_px, :cell_px]
        top, left = (index // columns) * cell_px, (index % columns) * cell_px
        canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return canvas
