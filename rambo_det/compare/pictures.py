"""The images on which two losses differ most, with the boxes of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.visualizer import Visualizer

from ..engine.saved import load_truth
from ..evaluation.pictures import missing_glyphs
from ..evaluation.ranking import best_f1
from .collect import Measured
from .matches import Matches
from .precision import average_precision

_SHORTEST = 300  # px that the longer side of a picture has at least
_LONGEST = 480
_EACH = 3  # pictures for either loss
_LEAST = 0.5  # difference in AP50, percent, below which the heading would say 0
_COLOURS = {"right": "#1a9850", "wrong": "#d73027", "object": "#2166ac"}


@dataclass
class Disagreement:
    """One image.

    Attributes:
        image: id.
        file: the name of its file.
        seed: of the runs that differ most there, in the direction of the mean over the seeds.
        difference: AP50 of the image alone, in percent, of the second loss less the first, with
            that seed.
        pictures: caption -> jpeg: the objects, and what that seed's run of each loss has found.
    """

    image: str
    file: str
    seed: int
    difference: float
    pictures: dict[str, bytes]


def disagreements(
    first: list[Measured],
    second: list[Measured],
    titles: tuple[str, str],
    truth_file: str,
    test_set: str,
    classes: list[str],
) -> list[Disagreement]:
    """The images on which the APs differ most in the mean over the seeds, if their files are there.

    Args:
        first, second: runs of the two losses, of the same seeds.
        titles: what the losses are called.
        truth_file: COCO json of the data set.
        test_set: its name in Detectron2's catalogs.
        classes: names of the classes.
    """
    pairs = [(a.matches, b.matches) for a, b in zip(first, second, strict=True)]
    each = np.array([_per_image(b) - _per_image(a) for a, b in pairs if a and b])  # (S, I)
    gains = each.mean(axis=0)
    order = np.argsort(-gains, kind="stable")
    best = [i for i in order[:_EACH] if gains[i] >= _LEAST]
    worst = [i for i in order[::-1][:_EACH] if gains[i] <= -_LEAST]
    truth = load_truth(truth_file)
    ids = sorted(truth.getImgIds())
    files = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get(test_set)}
    found = []
    for index in [*best, *worst]:
        image = cv2.imread(files.get(ids[index], ""))
        if image is None:
            continue
        # The largest is at least the mean: what the heading says is to be seen in the boxes.
        pair = int(np.argmax(each[:, index] * np.sign(gains[index])))
        objects = truth.loadAnns(truth.getAnnIds(ids[index]))
        labels = {item["id"]: item["name"] for item in truth.loadCats(truth.getCatIds())}
        boxes = np.array([item["bbox"] for item in objects], float).reshape(-1, 4)
        names = [labels[item["category_id"]] for item in objects]
        panels = {"the objects": _draw(image, boxes, names, [_COLOURS["object"]] * len(names))}
        for title, matches in zip(titles, pairs[pair], strict=True):
            assert matches is not None
            panels[title] = _detections(image, matches, int(index), classes)
        found.append(
            Disagreement(
                str(ids[index]),
                Path(files[ids[index]]).name,
                first[pair].run.seed,
                float(each[pair, index]),
                panels,
            )
        )
    return found


def _per_image(matches: Matches) -> np.ndarray:
    """(I,) AP50 in percent of each image alone; 0 where it has no objects."""
    number = matches.positives.shape[1]
    result = np.zeros(number)
    for start in range(0, number, 64):
        rows = np.arange(start, min(start + 64, number))
        ap = average_precision(matches, np.eye(len(rows), number, start, np.int32))[:, :, 0]
        known = ~np.isnan(ap)
        total = np.where(known, ap, 0).sum(axis=1)
        result[rows] = 100 * total / np.maximum(known.sum(axis=1), 1)
    return result


def _detections(image: np.ndarray, matches: Matches, index: int, classes: list[str]) -> bytes:
    counted = ~matches.ignored[0]  # at IoU 0.5
    right, objects = matches.right[0, counted], int(matches.positives.sum())
    lowest = best_f1(matches.scores[counted], right, objects)
    shown = matches.images == index
    shown = np.flatnonzero(shown & (matches.scores >= (1.0 if lowest is None else lowest)))
    of_class = np.searchsorted(matches.offsets, shown, side="right") - 1
    names = [f"{classes[k]} {matches.scores[i]:.2f}" for i, k in zip(shown, of_class, strict=True)]
    colours = [_COLOURS["right" if matches.right[0, i] else "wrong"] for i in shown]
    return _draw(image, matches.boxes[shown].astype(float), names, colours)


@missing_glyphs()
def _draw(image: np.ndarray, boxes: np.ndarray, labels: list[str], colours: list[Any]) -> bytes:
    """The image (H, W, 3) BGR with (N, 4) boxes x, y, width, height, as jpeg."""
    longest = max(image.shape[:2])
    scale = min(max(_SHORTEST / longest, 1.0), _LONGEST / longest)
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
                       if scale < 1 else cv2.INTER_CUBIC)  # fmt: skip
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * scale
    drawer = Visualizer(shown[:, :, ::-1])
    output = drawer.overlay_instances(
        boxes=corners, labels=labels, assigned_colors=colours, alpha=0.9
    )
    _, data = cv2.imencode(".jpg", output.get_image()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return bytes(data)
