"""Reads and checks a user's dataset in COCO's json format."""

import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ..errors import InputError
from .files import printable, read_text
from .segments import are_numbers, flip_pairs, read_keypoints, read_mask
from .source import DataSource

_NUMBER = (int, float)
#: The fields that the entries of each list must have, and the types of the fields.
_FIELDS: dict[str, dict[str, Any]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": (int, str), "width": _NUMBER, "height": _NUMBER, "file_name": str},
    "annotations": {"image_id": (int, str), "category_id": int, "bbox": list, "area": _NUMBER},
}


def read_coco(name: str, json_file: str | Path, image_dir: str | Path) -> DataSource:
    """Reads a COCO json, and checks the json and every image that it names.

    Sets these metadata: `without_mask` says why not every box has a mask. `mask_format` is
    `bitmask`, the `INPUT.MASK_FORMAT` to train with, if a mask to train on is RLE. `keypoint_names`
    and `keypoint_flip_map` describe the keypoints; `without_keypoints` says why none can be used.
    Raises InputError if the file is no COCO json, if it names an unknown image or category, or if
    an image is incomplete.
    """
    json_file, image_dir = find_coco(json_file, image_dir)
    content = _read_json(json_file)
    source = DataSource(name, str(json_file), str(image_dir), may_be_corners=True)
    for category, place in _entries(content, "categories", json_file):
        label, number = category["name"].strip(), category["id"]
        if number in source.categories:
            raise InputError(f"{json_file}: {place}: category id {number} occurs twice")
        source.categories[number] = label
        _add_keypoint_names(source, category.get("keypoints") or [], place)
    for image, place in _entries(content, "images", json_file):
        number, fault = image["id"], ""
        if number in source.images:
            fault = f"image id {number!r} occurs twice"
        elif type(number) is not type(next(iter(source.images), number)):  # ids get sorted
            fault = f"image ids must be all integers or all strings, but this one is {number!r}"
        elif isinstance(number, int) and not -(2**63) <= number < 2**63:
            # pycocotools converts larger ids to float, and then does not find their annotations.
            fault = f"the id {number} does not fit into 64 bits"
        if fault:
            raise InputError(f"{json_file}: {place}: {fault}")
        source.add_image(image, json_file)
    for annotation, place in _entries(content, "annotations", json_file):
        _add_annotation(source, annotation, place)
    used = source.used_classes()  # Roboflow adds a category without boxes; its name may repeat
    if repeated := [printable(name) for name in used if used.count(name) > 1]:
        raise InputError(f"{json_file}: two categories with boxes have the name '{repeated[0]}'")
    _finish_keypoints(source)
    return source


def find_coco(json_file: str | Path, image_dir: str | Path) -> tuple[Path, Path]:
    """Returns the path of the json and the folder of its images.

    If `json_file` is a folder, `image_dir` names a split. The json is then `FOLDER/SPLIT/*.json`,
    as in exports of Roboflow (`.` is the folder itself), or `FOLDER/annotations/*_SPLIT.json`, as
    in CVAT and COCO. The images are beside the json, in `images` or in a folder named as the split.
    Raises InputError if there is not exactly one json, or if several folders have all the images.
    """
    root, split = Path(json_file), str(image_dir)
    if not root.is_dir():
        return root, Path(image_dir)
    of_split = "*.json" if split == "." else f"*_{split}.json"
    places = [(root / split).glob("*.json"), (root / "annotations").glob(of_split)]
    visible = ([file for file in files if file.name[0] != "."] for files in map(sorted, places))
    found = next(filter(None, visible), [])
    if len(found) != 1:
        number = f"several ({', '.join(file.name for file in found)})" if found else "none"
        raise InputError(
            f"{root} is a folder, but {number} of {split}/*.json and annotations/*_{split}.json "
            "exist: name the json file and the image folder"
        )
    names = [image["file_name"] for image, _ in _entries(_read_json(found[0]), "images", found[0])]
    part = found[0].stem.partition("_")[2] if split == "." else split
    folders = [found[0].parent, root / "images" / part, root / part, root / "images", root]
    folders = list(dict.fromkeys(f.resolve() for f in folders if f.is_dir()))
    fit = [folder for folder in folders if all(map(os.path.isfile, map(folder.joinpath, names)))]
    if len(fit) > 1 and not all(map(os.path.isabs, names)):
        both = " and in ".join(map(str, fit))
        raise InputError(
            f"{found[0]}: all its images exist in {both}: name the json file and the image folder"
        )
    if not fit:  # take the folder with most images: later checks report the missing ones
        fit = sorted(folders, key=lambda f: -sum(os.path.isfile(f / name) for name in names))
    return found[0], fit[0]


def _read_json(path: Path) -> dict[str, list[Any]]:
    text = read_text(path, "annotation file")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a json file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} is not a COCO json: it has no list '{key}'")
    return content


def _entries(
    content: dict[str, list[Any]], key: str, file: str | Path
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each entry of one list, after a check of its fields, and its place for messages."""
    for index, item in enumerate(content[key]):
        place = f"{key}[{index}]"
        for name, kind in _FIELDS[key].items():
            value = item.get(name) if isinstance(item, dict) else None
            if value is None and name == "area":  # optional
                continue
            if not isinstance(value, kind) or not _is_valid(value):
                fault = "is missing" if value is None else f"has the invalid value {short(value)}"
                raise InputError(f"{file}: {place} is not in COCO's format: '{name}' {fault}")
        yield item, place


def _is_valid(value: Any) -> bool:
    if isinstance(value, str):  # a lone surrogate cannot be encoded
        return value.strip() != "" and not any("\ud800" <= c <= "\udfff" for c in value)
    return not isinstance(value, bool) and (not isinstance(value, float) or math.isfinite(value))


def _add_keypoint_names(source: DataSource, names: Any, place: str) -> None:
    """Records the names of a category's keypoints, or why they cannot be used."""
    metadata, fault = source.metadata, ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fault = f"must be a list of names, not {names!r}"
    elif len(set(names)) < len(names):
        fault = f"has a name twice: {', '.join(names)}"
    elif names and metadata.setdefault("keypoint_names", names) != names:
        fault = "must be the same for all categories"
    if fault:
        metadata.setdefault("without_keypoints", f"{source.file}: {place}: 'keypoints' {fault}")
    elif names and "keypoint_flip_map" not in metadata:
        metadata["keypoint_flip_map"] = flip_pairs(names, source.findings)


def _finish_keypoints(source: DataSource) -> None:
    """Removes all keypoints and records the reason if some are invalid or none is visible."""
    metadata = source.metadata
    if why := metadata.get("without_keypoints"):
        source.findings.add("keypoints", why.removeprefix(f"{source.file}: "))
    elif "keypoint_names" not in metadata:
        metadata["without_keypoints"] = f"{source.name} has no keypoints"
    elif not any(a["num_keypoints"] for a in source.annotations if not a["iscrowd"]):
        metadata["without_keypoints"] = f"{source.file}: no object has a visible keypoint"
    if "without_keypoints" in metadata:
        for item in (metadata, *source.annotations):
            for key in ("keypoint_names", "keypoint_flip_map", "keypoints", "num_keypoints"):
                item.pop(key, None)


def _add_annotation(source: DataSource, annotation: dict[str, Any], place: str) -> None:
    where = f"{source.file}: {place}"
    image_id, category_id, box = (annotation[key] for key in ("image_id", "category_id", "bbox"))
    if image_id not in source.images:
        raise InputError(f"{where}: image_id {short(image_id)} is not in 'images'")
    if category_id not in source.categories:
        raise InputError(f"{where}: category_id {short(category_id)} is not in 'categories'")
    if len(box) != 4 or not are_numbers(box):
        raise InputError(f"{where}: 'bbox' is {short(box)}, not four numbers x, y, width, height")
    flags = {key: annotation.get(key) or 0 for key in ("iscrowd", "ignore")}
    for key, flag in flags.items():
        if flag not in (0, 1):
            raise InputError(f"{where}: {key!r} must be 0 or 1, not {short(flag)}")
    crowd = any(flags.values())
    image = source.images[image_id]
    size, place = (image["height"], image["width"]), f"{place} of {printable(image['file_name'])}"
    note = partial(source.findings.add, place=place, image_id=image_id)
    # Some tools write null for a missing value: leave these fields out.
    fields = {k: v for k, v in annotation.items() if k != "ignore" and v is not None}
    why = f"{where} has no mask"
    try:
        mask, shape = read_mask(fields.pop("segmentation", []), size, note)
    except ValueError as error:
        mask, shape, why = [], None, f"{where}: {error}"
        source.findings.add("bad mask", f"{place}: {error}", image_id)
    if mask:
        fields["segmentation"] = mask
    if names := source.metadata.get("keypoint_names"):
        try:
            fields.update(read_keypoints(fields, len(names), size, note))
        except ValueError as error:
            source.metadata.setdefault("without_keypoints", f"{where}: {error}")
            fields.update(num_keypoints=0)
    fields["iscrowd"] = int(crowd)
    attributes = annotation.get("attributes")
    if isinstance(attributes, dict) and attributes.get("rotation"):
        note("rotated")
    source.note_fractions(box, image_id, place)
    kept = source.add_box(image_id, category_id, box, fields, place, shape)
    if kept and not mask:
        source.metadata.setdefault("without_mask", why)
    if kept and isinstance(mask, dict) and not crowd:  # crowds are not trained on
        source.metadata["mask_format"] = "bitmask"
