"""Key points of a COCO json: their names, by which Detectron2 mirrors and evaluates them."""

from __future__ import annotations

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
    """``num_keypoints`` of an annotation that lacks it; empty where there is nothing to add.

    Raises:
        InputError: its ``keypoints`` are not (x, y, visibility) of each name.
    """
    points = annotation.get("keypoints")
    if not names or points is None:
        return {}
    if not isinstance(points, list) or len(points) != 3 * len(names):
        raise InputError(
            f"{where}: 'keypoints' must be {3 * len(names)} numbers, x, y and visibility of each "
            f"of the {len(names)} that its category names"
        )
    if "num_keypoints" in annotation:
        return {}
    return {"num_keypoints": sum(visibility > 0 for visibility in points[2::3])}
