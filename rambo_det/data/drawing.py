"""Draws the quickstart's dataset: small images of shapes, in four strongly imbalanced classes.

Each image has its own random generator, so an image does not depend on the images before it.
"""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

CLASSES = ("circle", "square", "triangle", "star")
SPLITS = ("train", "val")
# Everything that decides what is drawn. The name of the cache folder has a hash of SPEC. Raise
# `version` if the drawing code itself changes the images.
SPEC: dict[str, Any] = {
    "version": 9,
    "seed": 1912_03500,
    "image_px": 96,
    "images": {"train": 800, "val": 250},
    "class_shares": [0.50, 0.25, 0.15, 0.10],
    "objects": [1, 5],
    "object_px": [18, 52],
    "distractors": [0, 1],
    "min_visible": 0.75,
    "min_contrast": 60,
    "pattern_contrast": 75,
}
_SUPERSAMPLING = 4


def _star(points: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _half_ring() -> np.ndarray:
    angles = np.linspace(0, np.pi, 24)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([arc, 0.55 * arc[::-1]])


_ARM = [(3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1)]
_CROSS = np.array(_ARM + [(-x, -y) for x, y in _ARM]) / 3.0
# Outlines within a circle of radius 1. The distractors belong to no class.
_OUTLINES = {
    "circle": _star(24, 1.0),
    "square": _star(2, 1.0),
    "triangle": np.stack([np.cos(np.arange(3) * 2.0944), np.sin(np.arange(3) * 2.0944)], axis=1),
    "star": _star(5, 0.42),
}
_DISTRACTORS = (_CROSS, _half_ring())
_PATTERNS = ("plain", "stripes", "checks", "rings")  # one for each class; distractors get any


def _noise(rng: Generator, size: int, amplitudes: dict[int, float]) -> np.ndarray:
    """Returns (size, size, 3) float noise around 0: a sum of random grids of `cells` x `cells`."""
    total = np.zeros((size, size, 3))
    for cells, amplitude in amplitudes.items():
        grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        # OpenCV promises the same result on every machine only for the EXACT resize.
        smooth = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
        total += (smooth.astype(np.float64) - 127.5) * (amplitude / 127.5)
    return total


def _background(rng: Generator, size: int) -> np.ndarray:
    """Returns (size, size, 3) float64 in 0..255: gradient, noise at four frequencies, lines."""
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size)
    slope = np.cos(direction) * ramp[None, :, None] + np.sin(direction) * ramp[:, None, None]
    image = rng.uniform(60, 190, 3) + slope * rng.uniform(-35, 35, 3)
    image = image + _noise(rng, size, {3: 25, 9: 18, 32: 14, size: 10})
    image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        colour = rng.integers(30, 226, 3).tolist()
        cv2.line(image, start, end, colour, int(rng.integers(1, 4)))
    return image.astype(np.float64)


def _mask(rng: Generator, outline: np.ndarray, size: int) -> np.ndarray:
    """Returns (size, size) float in 0..1: an outline at a random place, scale, angle and aspect."""
    low, high = SPEC["object_px"]
    diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    aspect = np.exp(rng.uniform(-0.22, 0.22))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (outline * (np.sqrt(aspect), 1 / np.sqrt(aspect))) @ turn.T
    points *= diameter / np.ptp(points, axis=0).max()
    points += rng.uniform(0.3 * diameter, size - 0.3 * diameter, 2)
    large = np.zeros((size * _SUPERSAMPLING,) * 2, np.uint8)
    cv2.fillPoly(large, [np.rint(points * _SUPERSAMPLING).astype(np.int32)], 255)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA) / 255.0


def _pattern(rng: Generator, name: str, mask: np.ndarray) -> np.ndarray:
    """Returns (size, size, 1) float in -1..1: stripes, checks or rings, turned at random around
    the middle of `mask`; 0 everywhere for "plain"."""
    rows, columns = np.nonzero(mask > 0.5)
    y, x = np.mgrid[: len(mask), : len(mask)]
    y, x = y - rows.mean(), x - columns.mean()
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 8)
    u, v = (x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))
    wave = 2 * np.pi / period
    values = {
        "plain": np.zeros_like(x),
        "stripes": np.sin(wave * u),
        "checks": np.sin(wave * u) * np.sin(wave * v),
        "rings": np.cos(wave * np.hypot(x, y)),
    }
    return values[name][..., None]


def _paint(rng: Generator, image: np.ndarray, mask: np.ndarray, pattern: str) -> None:
    """Fills `mask` in `image` with a noisy, patterned colour, in contrast to the pixels below."""
    under = image[mask > 0.5].mean(axis=0)
    colour = rng.uniform(20, 235, 3)
    while np.abs(colour - under).max() < SPEC["min_contrast"]:
        colour = rng.uniform(20, 235, 3)
    fill = colour + SPEC["pattern_contrast"] * _pattern(rng, pattern, mask)
    fill = np.clip(fill + _noise(rng, len(image), {12: 16, 48: 16, len(image): 10}), 0, 255)
    image += mask[..., None] * (fill - image)


def draw_image(split: str, index: int) -> tuple[np.ndarray, list[tuple[int, list[int], int]]]:
    """Draws one image.

    Returns the image, (96, 96, 3) uint8 BGR, and its objects as (class index, box, area). The box,
    (x, y, width, height) in px, and the area in pixels are those of the visible part of the shape.
    """
    rng = np.random.default_rng([SPEC["seed"], SPLITS.index(split), index])
    size = SPEC["image_px"]
    image = _background(rng, size)
    low, high = SPEC["objects"]
    labels = rng.choice(len(CLASSES), low + rng.binomial(high - low, 0.6), p=SPEC["class_shares"])
    extra = rng.integers(SPEC["distractors"][0], SPEC["distractors"][1] + 1)
    # Objects are painted over each other in a random order; -1 is a distractor.
    order = rng.permutation(np.concatenate([labels, np.full(extra, -1)]))
    owner = np.full((size, size), -1)
    painted: list[tuple[int, int]] = []  # label, pixels of the whole shape

    for label in order.tolist():
        pool = _DISTRACTORS if label < 0 else [_OUTLINES[CLASSES[label]]]
        pattern = _PATTERNS[rng.integers(len(_PATTERNS)) if label < 0 else label]
        for _ in range(20):
            mask = _mask(rng, pool[rng.integers(len(pool))], size)
            after = np.where(mask > 0.5, len(painted), owner)
            areas = [*(area for _, area in painted), int((mask > 0.5).sum())]
            visible = np.bincount(after[after >= 0], minlength=len(areas))
            # Every painted object gets a label, so enough of each shape must stay visible.
            if areas[-1] and (visible >= SPEC["min_visible"] * np.array(areas)).all():
                _paint(rng, image, mask, pattern)
                owner = after
                painted.append((label, areas[-1]))
                break

    objects = []
    for number, (label, _) in enumerate(painted):
        if label >= 0:
            rows, columns = np.nonzero(owner == number)
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            objects.append((label, box, len(rows)))
    return np.rint(image).clip(0, 255).astype(np.uint8), objects
