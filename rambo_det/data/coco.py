"""Read and check a user's data set in COCO's json format."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rambo_det.data.catalog import DataSource, register_sources
from rambo_det.data.files import check_image
from rambo_det.data.keypoints import keypoint_fields, keypoint_metadata
from rambo_det.errors import InputError


def register_coco(
    name: str, json_file: str | Path, image_dir: str | Path, classes: Sequence[str] | None = None
) -> list[str]:
    """Register one COCO data set with Detectron2 and return its class names.

    Without `classes` they are the categories that have a box, in the order of their ids: pass the
    classes of the training set when registering a test set, or use `register_datasets` for both.

    Raises:
        InputError: the name is taken or the data is not usable; see `read_coco`.
    """
    return register_sources([read_coco(name, json_file, image_dir)], classes)


def read_coco(name: str, json_file: str | Path, image_dir: str | Path) -> DataSource:
    """Read a COCO json and check it and every image that it names.

    Boxes without any area inside their image are dropped, with one warning. Annotations are
    numbered anew from 1 (pycocotools takes a match with annotation 0 for no match). In the
    metadata, `without_mask` is the first box without a mask, and `mask_format` is `bitmask` if
    there is RLE to train on: what `INPUT.MASK_FORMAT` then has to be.

    Raises:
        InputError: no COCO json; an annotation of an unknown image or category; a mask that is
            none; a missing, truncated or wrongly sized image; no boxes.
    """
    content = _read_json(Path(json_file))
    source = DataSource(name, str(json_file), str(image_dir))
    for index, category in enumerate(content["categories"]):
        where = f"{json_file}: categories[{index}]"
        label, number = _get(category, "name", str, where), _get(category, "id", int, where)
        if number in source.categories or label in source.categories.values():
            raise InputError(f"{where}: id {number} or name '{label}' is there twice")
        source.categories[number] = label
        points = keypoint_metadata(category, where)
        known = source.metadata.get("keypoint_names")
        if points and known and points["keypoint_names"] != known:
            raise InputError(f"{where}: 'keypoints' must be the same for all categories")
        source.metadata.update(points)

    for index, image in enumerate(content["images"]):
        where = f"{json_file}: images[{index}]"
        number = _get(image, "id", (int, str), where)
        width, height = (_pixels(image, key, where) for key in ("width", "height"))
        path = Path(image_dir) / _get(image, "file_name", str, where)
        if number in source.images:
            raise InputError(f"{where}: image id {number!r} is there twice")
        if type(number) is not type(next(iter(source.images), number)):  # they have to be sorted
            raise InputError(f"{where}: ids are numbers in some images, in others text: {number!r}")
        check_image(path, (width, height), str(json_file))
        source.images[number] = {**image, "width": width, "height": height}

    for index, annotation in enumerate(content["annotations"]):
        _add_annotation(source, annotation, f"{json_file}: annotations[{index}]")
    source.finish()
    return source


def _read_json(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise InputError(f"the annotation file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a json file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} is not a COCO json: it has no list '{key}'")
    return content


def _get(item: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "is missing" if value is None else f"cannot be {value!r}"
        raise InputError(f"{where} is not in COCO's format: '{key}' {found}")
    return value


def _pixels(image: Any, key: str, where: str) -> int:
    value = _get(image, key, (int, float), where)
    if not math.isfinite(value):
        raise InputError(f"{where} is not in COCO's format: '{key}' cannot be {value!r}")
    return int(value)


def _add_annotation(source: DataSource, annotation: Any, where: str) -> None:
    image_id = _get(annotation, "image_id", (int, str), where)
    category_id = _get(annotation, "category_id", int, where)
    box = _get(annotation, "bbox", list, where)
    if image_id not in source.images:
        raise InputError(f"{where}: 'images' has no image_id {image_id!r}")
    if category_id not in source.categories:
        raise InputError(f"{where}: 'categories' has no category_id {category_id}")
    if len(box) != 4 or not _are_numbers(box):
        raise InputError(f"{where}: 'bbox' is {box}, but must be four numbers x, y, width, height")
    crowd = _flag(annotation, "iscrowd", where) or _flag(annotation, "ignore", where)
    # What is null, as some tools write it, is left out.
    fields = {k: v for k, v in annotation.items() if k != "ignore" and v is not None}
    if not math.isfinite(_get({"area": 0, **fields}, "area", (int, float), where)):
        raise InputError(f"{where}: 'area' cannot be {fields['area']!r}")
    mask = _mask(fields.pop("segmentation", []), source.images[image_id], where)
    if mask:
        fields["segmentation"] = mask
    fields.update(keypoint_fields(fields, source.metadata.get("keypoint_names", ()), where))
    kept = source.add_box(image_id, category_id, box, {**fields, "iscrowd": int(crowd)})
    if kept and not mask:
        source.metadata.setdefault("without_mask", where)
    if kept and isinstance(mask, dict) and not crowd:  # crowds are not trained on
        source.metadata["mask_format"] = "bitmask"


def _flag(annotation: Any, key: str, where: str) -> bool:
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
        fits = all(_is_polygon(polygon) for polygon in value)
    else:
        fits = isinstance(value, dict) and value.get("size") == size
        fits = fits and _are_counts(value.get("counts"), math.prod(size))
    if not fits:
        raise InputError(
            f"{where}: 'segmentation' must be polygons, [[x, y, ...], ...], or "
            f"RLE as large as the image, {{'size': {size}, 'counts': ...}}"
        )
    return value


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 2 == 0 and _are_numbers(value)


def _are_counts(value: Any, pixels: int) -> bool:
    if isinstance(value, list):
        return all(isinstance(x, int) and x >= 0 for x in value) and sum(value) == pixels
    return isinstance(value, str) and value != ""


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
