"""Key points of a COCO json: their names, by which Detectron2 mirrors and evaluates them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import InputError


def keypoint_metadata(category: dict[str, Any], where: str) -> dict[str, Any]:
    """What goes into the MetadataCatalog for ``keypoints``, the names in a COCO category.

    Two points are each other's mirror image if their names differ in ``left`` and ``right``. Empty
    for a category without key points.

    Raises:
        InputError: ``keypoints`` is no list of different names.
    """
    names = category.get("keypoints") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: 'keypoints' must be a list of names, not {names!r}")
    if len(set(names)) < len(names):
        raise InputError(f"{where}: 'keypoints' has a name twice: {', '.join(names)}")
    pairs = [(name, name.replace("left", "right")) for name in names if "left" in name]
    flips = [pair for pair in pairs if pair[1] in names]
    return {"keypoint_names": names, "keypoint_flip_map": flips} if names else {}


def keypoint_fields(annotation: dict[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """``keypoints`` and ``num_keypoints`` of an annotation, both of which an evaluation needs.

    One without key points has zeros, as in COCO's own data. Empty if there are no ``names``.

    Raises:
        InputError: its ``keypoints`` are not (x, y, visibility) of each name.
    """
    if not names:
        return {}
    points = annotation.get("keypoints", [0] * (3 * len(names)))
    if (
        not isinstance(points, list)
        or len(points) != 3 * len(names)
        or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in points)
    ):
        raise InputError(
            f"{where}: 'keypoints' must be {3 * len(names)} numbers, x, y and visibility of each "
            f"of the {len(names)} that its category names"
        )
    seen = sum(visibility > 0 for visibility in points[2::3])
    return {"keypoints": points, "num_keypoints": annotation.get("num_keypoints", seen)}
