"""Which detections of a run are right, as COCO's evaluation matches them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..engine.files import AtomicFiles
from ..engine.saved import load_truth
from .record import damaged

DETECTIONS = Path("inference", "coco_instances_results.json")
_CACHE = "matches.npz"


@dataclass
class Matches:
    """The N detections of a run on I images, K classes, T IoU thresholds (COCO's ten).

    Attributes:
        scores: (N,) float64; class by class, the highest first.
        images: (N,) int32, index of the detection's image in COCO's order of their ids.
        offsets: (K + 1,) int64: detections of class k are ``offsets[k]:offsets[k + 1]``.
        right: (T, N) bool, matched to an object that counts.
        ignored: (T, N) bool, neither right nor wrong: matched to a crowd.
        positives: (K, I) int32, objects that count.
        boxes: (N, 4) float32, x, y, width, height in px.
    """

    scores: np.ndarray
    images: np.ndarray
    offsets: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    positives: np.ndarray
    boxes: np.ndarray


def find_matches(truth: COCO, detections: list[dict[str, Any]]) -> Matches:
    """Matches detections in COCO's result format with the objects of the data set.

    Args:
        truth: annotations, whose category ids in order are the K classes.
        detections: dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
        evaluation.evaluate()
    params = evaluation.params
    number = {image: index for index, image in enumerate(params.imgIds)}
    positives = np.zeros((len(params.catIds), len(params.imgIds)), np.int32)
    parts: list[tuple[np.ndarray, ...]] = []
    counts = [0]
    for index, images in enumerate(_by_class(evaluation)):
        scores = [np.asarray(image["dtScores"], float) for image in images]
        order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="mergesort")
        where = [
            np.full(len(image["dtScores"]), number[image["image_id"]], np.int32) for image in images
        ]
        empty = np.zeros((len(params.iouThrs), 0))
        matched = np.concatenate([empty, *(i["dtMatches"] for i in images)], axis=1) > 0
        ignored = np.concatenate([empty, *(i["dtIgnore"] for i in images)], axis=1) > 0
        for image in images:
            positives[index, number[image["image_id"]]] = np.sum(np.asarray(image["gtIgnore"]) == 0)
        joined = np.concatenate([np.zeros(0), *scores])[order]
        places = np.concatenate([np.zeros(0, np.int32), *where])[order]
        ids = [detection for image in images for detection in image["dtIds"]]
        boxes = np.asarray([found.anns[i]["bbox"] for i in ids], np.float32).reshape(-1, 4)
        right = (matched & ~ignored)[:, order]
        parts.append((joined, places, right, ignored[:, order], boxes[order].T))
        counts.append(len(order))
    joined, places, right, ignored, boxes = (
        np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)
    )
    return Matches(joined, places, np.cumsum(counts), right, ignored, positives, boxes.T)


def _by_class(evaluation: COCOeval) -> list[list[dict[str, Any]]]:
    """COCO's matches of each class: of the images that have objects or detections of it."""
    number = len(evaluation.params.imgIds)
    images = evaluation.evalImgs
    return [
        [image for image in images[start : start + number] if image is not None]
        for start in range(0, len(images), number)
    ]


def run_matches(folder: Path, truth_file: str) -> Matches:
    """The matches of a finished run; they are kept in its folder.

    Args:
        folder: of the run.
        truth_file: COCO json of the data set that it was evaluated on.

    Raises:
        InputError: the run's detections are no json.
    """
    text = (folder / DETECTIONS).read_bytes()
    key = hashlib.sha256(text + Path(truth_file).read_bytes()).hexdigest()
    names = [field.name for field in fields(Matches)]
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(folder / _CACHE) as cache:
        if str(cache["key"]) == key:
            return Matches(**{name: cache[name] for name in names})
    try:
        detections = json.loads(text)
    except ValueError as error:
        raise damaged(folder, f"{DETECTIONS} cannot be read ({error})") from None
    matches = find_matches(load_truth(truth_file), detections)
    with AtomicFiles(None).open(str(folder / _CACHE), "wb") as file:
        np.savez_compressed(file, key=key, **{name: getattr(matches, name) for name in names})
    return matches
