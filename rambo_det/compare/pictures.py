"""Pictures of the images on which two losses differ most, with the boxes of both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from pycocotools.coco import COCO

from ..evaluation.matches import Matches, average_precisions
from ..evaluation.pictures import FALSE_COLOR, TRUE_COLOR, escape_dollars, ignore_missing_glyphs
from ..evaluation.ranking import best_f1
from .results import RunResult

_CHUNK = 64  # number of images in a chunk of ap50_of_images
_LONGER_SIDE_PX = 400  # length of the longer side of a picture
_PICTURES_PER_LOSS = 3  # number of pictures for each of the two losses
_MIN_DIFFERENCE = 0.5  # smaller differences in AP50, in percent, would be 0 in the heading
#: The colours of the boxes.
COLOURS = {"right": TRUE_COLOR, "wrong": FALSE_COLOR, "object": "#762a83"}


def disagreements(
    pairs: list[tuple[RunResult, RunResult]], titles: tuple[str, str], truth: COCO, test_set: str
) -> Iterator[dict[str, Any]]:
    """Yields the images whose AP50, averaged over the seeds, differs most; skips missing files.

    Args:
        pairs: for each seed, the runs of the first and of the second loss.
        titles: names of the two losses.
        truth: annotations of the test set.
        test_set: name of the test set in Detectron2's catalogs.

    Yields:
        ``image``, its id; ``file``, its name; ``seed`` of the pair that differs most on it, in the
        direction of the mean; ``difference``, AP50 (percent) of the second loss minus the first
        with this seed; ``panels``, caption -> jpeg: ground truth, then detections of each loss.
    """
    gains_of_seeds = np.array(  # (S, I)
        [ap50_of_images(b.matches) - ap50_of_images(a.matches) for a, b in pairs]
    )
    gains = gains_of_seeds.mean(axis=0)
    order = np.argsort(-gains, kind="stable")
    ids = sorted(truth.getImgIds())
    files = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get(test_set)}
    for index in dict.fromkeys([*order[:_PICTURES_PER_LOSS], *order[::-1][:_PICTURES_PER_LOSS]]):
        image = cv2.imread(files.get(ids[index], ""))
        if image is None or abs(gains[index]) < _MIN_DIFFERENCE:
            continue
        # This seed's difference is at least the mean, so the boxes show what the heading says.
        pair = int(np.argmax(gains_of_seeds[:, index] * np.sign(gains[index])))
        objects = truth.loadAnns(truth.getAnnIds(ids[index]))
        names = [truth.cats[item["category_id"]]["name"] for item in objects]
        boxes = np.array([item["bbox"] for item in objects], float)
        panels = {"the objects": _draw(image, boxes, names, [COLOURS["object"]] * len(names))}
        for title, item in zip(titles, pairs[pair], strict=True):
            panels[title] = _detections(image, item.matches, int(index))
        yield {
            "image": ids[index], "file": Path(files[ids[index]]).name, "panels": panels,
            "seed": pairs[pair][0].run.seed, "difference": float(gains_of_seeds[pair, index]),
        }  # fmt: skip


def ap50_of_images(matches: Matches) -> np.ndarray:
    """Returns the AP50 of each image alone, (I,), in percent; 0 for an image without objects."""
    number = matches.positives.shape[1]
    # In chunks: for all images at once, memory would grow with the square of their number.
    parts = [
        average_precisions(matches, np.eye(_CHUNK, number, start, int))[:, :, 0]
        for start in range(0, number, _CHUNK)
    ]
    ap = np.concatenate(parts)[:number]
    return 100 * np.nansum(ap, axis=1) / np.maximum((~np.isnan(ap)).sum(axis=1), 1)


def _detections(image: np.ndarray, matches: Matches, index: int) -> bytes:
    """Draws an image's detections that reach the score of the loss's best F1 at IoU 0.5."""
    threshold = best_f1(*matches.counted, int(matches.positives.sum()))
    min_score = 1.0 if threshold is None else threshold
    shown = np.flatnonzero((matches.images == index) & (matches.scores >= min_score))
    classes = np.searchsorted(matches.offsets, shown, side="right") - 1
    right = matches.right[0, shown]
    labels = [  # the marks are for readers who cannot distinguish the colours
        f"{'✓' if hit else '✗'} {matches.classes[k]} {matches.scores[i]:.2f}"
        for i, k, hit in zip(shown, classes, right, strict=True)
    ]
    colours = [COLOURS["right" if hit else "wrong"] for hit in right]
    return _draw(image, matches.boxes[shown], labels, colours)


@ignore_missing_glyphs()
def _draw(image: np.ndarray, boxes: np.ndarray, labels: list[str], colours: list[str]) -> bytes:
    """Draws ``boxes``, (N, 4) x, y, width, height, in an (H, W, 3) BGR image; returns a jpeg."""
    corners = BoxMode.convert(boxes.reshape(-1, 4), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    drawer = Visualizer(image[:, :, ::-1], scale=_LONGER_SIDE_PX / max(image.shape[:2]))
    labels = [escape_dollars(label) for label in labels]
    output = drawer.overlay_instances(boxes=corners, labels=labels, assigned_colors=colours)
    return bytes(cv2.imencode(".jpg", output.get_image()[:, :, ::-1])[1])
