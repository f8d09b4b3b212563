"""Decodes and checks the masks and keypoints of COCO annotations.

A ValueError says why masks or keypoints cannot be used; a model without them can still train.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask

from .findings import Findings
from .source import TOLERANCE_PX, Shape

#: Records a finding of this kind about the annotation that is being read.
Note = Callable[[str], None]
_MAX_COORDINATE = 1e9  # px; sums of larger numbers are not exact
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
# Finds left or right anywhere in a name, or l or r as a separate letter: l_eye, eye.R, LEye.
_SIDE = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_CAMEL_SIDE = re.compile(r"(?<![A-Za-z])[LR](?=[A-Z][a-z])|(?<=[a-z])[LR](?![A-Za-z])")


def are_numbers(values: Sequence[Any]) -> bool:
    """Returns whether all values are finite numbers and small enough to be coordinates in px."""
    return all(type(x) in (int, float) and abs(x) <= _MAX_COORDINATE for x in values)


def read_mask(value: Any, size: tuple[int, int], note: Note) -> tuple[Any, Shape | None]:
    """Returns a mask that can be trained on, and its shape; ``([], None)`` if nothing is left.

    Keeps only polygons of three points or more with area inside the image: Detectron2 would leave
    out an object if none of its polygons had three points.

    Args:
        value: polygons ``[[x, y, ...], ...]``, or RLE with run lengths as a list or as text.
        size: height and width of the image in px.
        note: is called with the kind of each finding, such as a polygon that is left out.

    Raises:
        ValueError: ``value`` is neither polygons nor RLE, or the RLE does not fill the image.
    """
    expected = (
        "'segmentation' must be polygons, [[x, y, ...], ...], or RLE that fills the image, "
        f"{{'size': {list(size)}, 'counts': ...}}"
    )
    if isinstance(value, dict):
        return _read_rle(value, size, expected)
    if not isinstance(value, list) or not all(
        isinstance(p, list) and len(p) % 2 == 0 and are_numbers(p) for p in value
    ):
        raise ValueError(expected)
    kept, total_area = [], 0.0
    for polygon in filter(None, value):
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2  # by the shoelace formula
        if len(polygon) < 6:
            note("few points")
        elif area <= 0 or min(x.max(), y.max()) <= 0 or x.min() >= size[1] or y.min() >= size[0]:
            note("outside")
        else:
            kept.append(polygon)
            total_area += area
    if not kept:
        return [], None
    points = [xy for polygon in kept for xy in polygon]
    left, top, right, bottom = (f(points[k::2]) for f in (min, max) for k in (0, 1))
    if max(-left, -top, right - size[1], bottom - size[0]) > TOLERANCE_PX:
        note("mask beyond")
    return kept, Shape(total_area, [left, top, right - left, bottom - top])


def _read_rle(
    value: dict[str, Any], size: tuple[int, int], expected: str
) -> tuple[Any, Shape | None]:
    """Decodes RLE after a check: with wrong counts, pycocotools reads and writes out of bounds."""
    counts = value.get("counts")
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if value.get("size") != list(size) or not isinstance(runs, list) or not runs:
        raise ValueError(expected)
    if not all(type(n) is int and n >= 0 for n in runs) or sum(runs) != math.prod(size):
        raise ValueError(f"the mask's counts do not add up to height x width: {expected}")
    if not any(runs[1::2]):
        return [], None
    rle = pycocotools.mask.frPyObjects({"size": list(size), "counts": runs}, *size)
    shape = Shape(float(sum(runs[1::2])), pycocotools.mask.toBbox(rle).tolist())
    return {"size": list(size), "counts": counts}, shape


def run_lengths(text: str) -> list[int] | None:
    """Returns the run lengths of COCO's compressed RLE; None if the text is no such RLE.

    The numbers are in base 32, lowest digit first, one character for each digit. From the fourth
    run length on, the number is the difference from the run length two places before.
    """
    if not re.fullmatch(r"([P-o]{0,10}[0-O])*", text):
        return None
    runs: list[int] = []
    for word in re.findall(r"[P-o]*[0-O]", text):
        digits = [ord(character) - 48 for character in word]
        number = sum((digit & 31) << 5 * place for place, digit in enumerate(digits))
        number -= (digits[-1] & 16) << 5 * len(digits) - 4  # the sign
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def flip_pairs(names: Sequence[str], findings: Findings) -> list[tuple[str, str]]:
    """Returns the pairs of keypoints that Detectron2 swaps when it flips an image.

    The names of a pair differ only in left or right, or in a separate letter l or r; case does not
    matter. Records in ``findings`` each name with left or right that has no partner.
    """
    by_name = {name.casefold(): name for name in names}
    pairs: list[tuple[str, str]] = []
    for name in names:
        sides = [*_SIDE.finditer(name), *_CAMEL_SIDE.finditer(name)]
        swapped = (name[: m.start()] + _SIDES[m[0].lower()] + name[m.end() :] for m in sides)
        partners = [by_name[other.casefold()] for other in swapped if other.casefold() in by_name]
        if partners and (partners[0], name) not in pairs:
            pairs.append((name, partners[0]))
        if not partners and any(m[0].lower() in ("left", "right") for m in sides):
            findings.add("unpaired", f"'{name}'")
    return pairs


def read_keypoints(
    annotation: dict[str, Any], number: int, size: tuple[int, int], note: Note
) -> dict[str, Any]:
    """Returns ``keypoints`` and ``num_keypoints`` of an annotation. Evaluation needs both.

    Without keypoints, both are zeros, as in COCO's own data. Raises ValueError if there are not
    ``number`` valid points. ``size`` and ``note`` are those of :func:`read_mask`.
    """
    points = annotation.get("keypoints") or [0] * (3 * number)
    if not isinstance(points, list) or len(points) != 3 * number or not are_numbers(points):
        raise ValueError(
            f"'keypoints' must be {3 * number} numbers, x, y and visibility of each of the "
            f"{number} keypoints of its category"
        )
    if not all(visibility in (0, 1, 2) for visibility in points[2::3]):
        raise ValueError("every third number of 'keypoints', the visibility, must be 0, 1 or 2")
    triples = zip(points[::3], points[1::3], points[2::3], strict=True)
    visible = [(x, y) for x, y, visibility in triples if visibility]
    if any(max(-x, -y, x - size[1], y - size[0]) > TOLERANCE_PX for x, y in visible):
        note("point outside")
    count = annotation.get("num_keypoints")
    is_valid = type(count) is int and 0 <= count <= number
    return {"keypoints": points, "num_keypoints": count if is_valid else len(visible)}
