"""Read and check a user's data set in COCO's json format."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .source import DataSource

logger = logging.getLogger(__name__)

_NUMBER = (int, float)
#: What the entries of each list must have, and of which types.
_FIELDS: dict[str, dict[str, Any]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": (int, str), "width": _NUMBER, "height": _NUMBER, "file_name": str},
    "annotations": {"image_id": (int, str), "category_id": int, "bbox": list, "area": _NUMBER},
}
_OPTIONAL = ("area",)
#: An area beyond so many times the box's is none in px². COCO's metrics of key points divide by it.
_AREA_RATIO = 4


def read_coco(name: str, json_file: str | Path, image_dir: str | Path) -> DataSource:
    """Read a COCO json and check it and every image that it names.

    In the metadata, `without_mask` is the first box without a mask, and `mask_format` is `bitmask`
    if there is RLE to train on: what `INPUT.MASK_FORMAT` then has to be. Of key points there are
    `keypoint_names` and `keypoint_flip_map`.

    Raises:
        InputError: no COCO json; an annotation of an unknown image or category; a mask that is
            none, or key points that are not those named; boxes in another convention; a missing,
            truncated or wrongly sized image.
    """
    content = _read_json(Path(json_file))
    source = DataSource(name, str(json_file), str(image_dir))
    for category, where in _entries(content, "categories", json_file):
        label, number = category["name"], category["id"]
        if number in source.categories or label in source.categories.values():
            raise InputError(f"{where}: id {number} or name '{label}' is there twice")
        source.categories[number] = label
        _add_keypoint_names(source, category.get("keypoints") or [], where)
    for image, where in _entries(content, "images", json_file):
        number = image["id"]
        if number in source.images:
            raise InputError(f"{where}: image id {number!r} is there twice")
        if type(number) is not type(next(iter(source.images), number)):  # they have to be sorted
            raise InputError(f"{where}: ids are numbers in some images, in others text: {number!r}")
        source.add_image(image, json_file)
    for annotation, where in _entries(content, "annotations", json_file):
        _add_annotation(source, annotation, where)
    _check_convention(source, content["annotations"])
    return source


def _read_json(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise InputError(f"the annotation file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a json file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} is not a COCO json: it has no list '{key}'")
    return content


def _entries(
    content: dict[str, list[Any]], key: str, file: str | Path
) -> Iterator[tuple[dict[str, Any], str]]:
    """The entries of one list, checked for their fields, and where each is."""
    for index, item in enumerate(content[key]):
        where = f"{file}: {key}[{index}]"
        for name, kind in _FIELDS[key].items():
            value = item.get(name) if isinstance(item, dict) else None
            if value is None and name in _OPTIONAL:
                continue
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                found = "is missing" if value is None else f"cannot be {value!r}"
                raise InputError(f"{where} is not in COCO's format: '{name}' {found}")
        yield item, where


def _add_keypoint_names(source: DataSource, names: Any, where: str) -> None:
    """Note down the names of a category's key points, by which Detectron2 mirrors them.

    Two are each other's mirror image if their names differ in ``left`` and ``right``, in whatever
    case.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: 'keypoints' must be a list of names, not {names!r}")
    if len(set(names)) < len(names):
        raise InputError(f"{where}: 'keypoints' has a name twice: {', '.join(names)}")
    if names and source.metadata.get("keypoint_names", names) != names:
        raise InputError(f"{where}: 'keypoints' must be the same for all categories")
    if names:
        known = {name.lower(): name for name in names}
        pairs = [(known[key], known.get(key.replace("left", "right"))) for key in known]
        flips = [pair for pair in pairs if pair[1] not in (None, pair[0])]
        source.metadata.update(keypoint_names=names, keypoint_flip_map=flips)


def _add_annotation(source: DataSource, annotation: dict[str, Any], where: str) -> None:
    image_id, category_id, box = (annotation[key] for key in ("image_id", "category_id", "bbox"))
    if image_id not in source.images:
        raise InputError(f"{where}: 'images' has no image_id {image_id!r}")
    if category_id not in source.categories:
        raise InputError(f"{where}: 'categories' has no category_id {category_id}")
    if len(box) != 4 or not _are_numbers(box):
        raise InputError(f"{where}: 'bbox' is {box}, but must be four numbers x, y, width, height")
    crowd = _flag(annotation, "iscrowd", where) or _flag(annotation, "ignore", where)
    # What is null, as some tools write it, is left out.
    fields = {k: v for k, v in annotation.items() if k != "ignore" and v is not None}
    mask = _mask(fields.pop("segmentation", []), source.images[image_id], where)
    if mask:
        fields["segmentation"] = mask
    if guessed := not 0 < fields.get("area", 0) <= _AREA_RATIO * box[2] * box[3]:
        fields["area"] = _area(mask) or box[2] * box[3]
    if names := source.metadata.get("keypoint_names"):
        fields.update(_keypoints(fields, len(names), where))
    kept = source.add_box(image_id, category_id, box, {**fields, "iscrowd": int(crowd)})
    source.guessed_areas += kept and guessed and annotation.get("area") is not None
    if kept and not mask:
        source.metadata.setdefault("without_mask", where)
    if kept and isinstance(mask, dict) and not crowd:  # crowds are not trained on
        source.metadata["mask_format"] = "bitmask"


def _check_convention(source: DataSource, annotations: list[dict[str, Any]]) -> None:
    """Refuse boxes of corners or of fractions; warn where they might be corners.

    A pixel beyond the image may come from rounding.
    """
    over: list[int] = []
    corners = fractions = True
    for index, annotation in enumerate(annotations):
        x, y, third, fourth = annotation["bbox"]
        image = source.images[annotation["image_id"]]
        width, height = image["width"], image["height"]
        corners = corners and x <= third <= width + 1 and y <= fourth <= height + 1
        fractions = fractions and max(x, y, third, fourth) <= 1
        if x + third > width + 1 or y + fourth > height + 1:
            over.append(index)
    convention = "COCO's 'bbox' is x, y, width, height in px"
    if fractions and any(value % 1 for item in annotations for value in item["bbox"]):
        raise InputError(
            f"{source.file}: annotations[0]: 'bbox' is {annotations[0]['bbox']}, and no box has a "
            f"number above 1: these are fractions of the image, but {convention}"
        )
    if not corners or not over:
        return
    text = (
        f"{source.file}: annotations[{over[0]}]: 'bbox' is {annotations[over[0]]['bbox']}, and "
        f"{len(over)} of {len(annotations)} boxes reach beyond their image, but none would as "
        f"x1, y1, x2, y2: {convention}"
    )
    if 2 * len(over) > len(annotations):
        raise InputError(text)
    logger.warning("%s", text)


def _flag(annotation: dict[str, Any], key: str, where: str) -> bool:
    value = annotation.get(key) or 0
    if value not in (0, 1):
        raise InputError(f"{where}: {key!r} must be 0 or 1, not {value!r}")
    return bool(value)


def _mask(value: Any, image: dict[str, Any], where: str) -> Any:
    """RLE as it is, or the polygons of three points or more; an empty list means no mask.

    Detectron2 would leave out the whole object where no such polygon is left, and pycocotools
    writes past the end of RLE that is longer than its image.
    """
    size = [image["height"], image["width"]]
    if isinstance(value, list):
        value = [p for p in value if not (isinstance(p, list) and len(p) < 6)]
        fits = all(isinstance(p, list) and len(p) % 2 == 0 and _are_numbers(p) for p in value)
    else:
        fits = isinstance(value, dict) and value.get("size") == size
        fits = fits and _fill(value.get("counts"), math.prod(size))
    if not fits:
        raise InputError(
            f"{where}: 'segmentation' must be polygons, [[x, y, ...], ...], or "
            f"RLE as large as the image, {{'size': {size}, 'counts': ...}}, whose counts add up "
            f"to {math.prod(size)} px"
        )
    return value


def _area(mask: Any) -> float:
    """In px²; 0 without a mask."""
    if isinstance(mask, dict):
        return sum(_counts(mask["counts"])[1::2])
    from detectron2.structures import PolygonMasks

    return float(PolygonMasks([mask]).area()) if mask else 0


def _fill(value: Any, pixels: int) -> bool:
    """Whether RLE has counts, as a list or COCO's string, that add up to so many pixels."""
    counts = _counts(value)
    if not isinstance(counts, list) or not all(isinstance(x, int) and x >= 0 for x in counts):
        return False
    return sum(counts) == pixels


def _counts(value: Any) -> Any:
    """The counts of COCO's string, empty if it is none; anything else as it is.

    pycocotools itself reads on behind a string that is cut off, and writes past the end of an
    image that the counts overfill. A number has five bits a character from "0" on, the lowest
    first; 32 means that another follows, 16 of the last is the sign. From the fourth on, a number
    is the difference to the count two before it.
    """
    if not isinstance(value, str):
        return value
    counts: list[int] = []
    number = shift = 0
    for code in (ord(character) - 48 for character in value):
        if not 0 <= code < 64 or shift > 25:  # pycocotools' integers have 32 bits
            return []
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (code & 16) << (shift - 4)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return [] if shift else counts


def _keypoints(annotation: dict[str, Any], number: int, where: str) -> dict[str, Any]:
    """``keypoints`` and ``num_keypoints`` of an annotation, both of which an evaluation needs.

    One without key points, or with an empty list of them, has zeros, as in COCO's own data.
    """
    points = annotation.get("keypoints") or [0] * (3 * number)
    if not isinstance(points, list) or len(points) != 3 * number or not _are_numbers(points):
        raise InputError(
            f"{where}: 'keypoints' must be {3 * number} numbers, x, y and visibility of each "
            f"of the {number} that its category names"
        )
    seen = sum(visibility > 0 for visibility in points[2::3])
    return {"keypoints": points, "num_keypoints": annotation.get("num_keypoints", seen)}


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(x, _NUMBER) and math.isfinite(x) for x in values)
