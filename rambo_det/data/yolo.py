"""Reads and checks a user's dataset in YOLO format, as written by Ultralytics and Roboflow."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import InputError, one_line
from .files import IMAGE_EXTENSIONS, backslash_hint, files_in, printable, read_text
from .segments import read_mask
from .source import DataSource

# Fractions may lie this far outside 0..1, because tools round. Other numbers are errors.
_TOLERANCE = 0.01
_SPLITS = ("train", "val", "valid", "test")
_ALIASES = {"valid": "val", "validation": "val", "val": "valid"}


def read_yolo(name: str, data_yaml: str | Path, split: str) -> DataSource:
    """Reads a split that `data_yaml` names, and the label file of each image.

    A split is a folder of images, a text file that lists images, or a yaml list of these. Paths are
    relative to `path` or the yaml's folder; in a text file, also to the text file's folder.
    Roboflow's `../train/images` is also searched as `train/images`. The label file of
    `images/x.jpg` is `labels/x.txt` or `images/x.txt`; without a label file, an image has no
    objects. A line is `class x y width height`, centre and size as fractions of the image size, or
    a polygon, `class x1 y1 x2 y2 ...`, which becomes a box and a mask. Raises InputError if a file
    is missing or malformed, or if no image has a label file.
    """
    file = Path(data_yaml)
    content = _read_yaml(file)
    places = [_place(entry, content, file) for entry in _entries_of(content, split, file)]
    source = DataSource(name, f"{file}: {split}", os.path.realpath(file.parent))
    source.categories = _names(content, file)
    paths = [path for place in places for path in _images_of(place, content, file)]
    image_of: dict[Path, Path] = {}  # by label file
    for path in paths:
        image_id = _relative(path, file.parent)
        if image_id in source.images:
            source.findings.add("listed twice", image_id)
            continue
        source.add_image({"id": image_id, "file_name": image_id}, source.file)
        label = _label_file(path)
        if not os.path.isfile(label):
            source.findings.add("no label", image_id)
            continue
        if (other := image_of.setdefault(label, path)) != path:
            raise InputError(
                f"the label file {printable(label)} belongs to two images, {printable(other)} and "
                f"{printable(path)}"
            )
        lines = read_text(label, "label file").splitlines()
        for number, line in enumerate(lines, 1):
            if words := line.split():
                place = f"{printable(label)}:{number}"
                _add_object(source, image_id, words, place, bool(content.get("kpt_shape")))
    if len(source.findings.places["no label"]) == len(source.images):
        raise InputError(
            f"{source.file}: none of the {len(source.images)} images has a label file; expected "
            f"for example {printable(_label_file(paths[0]))} for {printable(paths[0])}"
        )
    are_folders = all(place.is_dir() for place in places)  # a list may leave out images
    for folder in sorted({_label_file(path).parent for path in paths if are_folders}):
        for text in files_in(folder, {".txt"}):
            is_notes = text.name.lower().startswith(("classes", "notes", "readme", "labels"))
            if text.parent == folder and text not in image_of and not is_notes:
                source.findings.add("no image", _relative(text, file.parent))
    if any("segmentation" not in a for a in source.annotations):
        polygons = (a["image_id"] for a in source.annotations if "segmentation" in a)
        for image_id in dict.fromkeys(polygons):
            source.findings.add("mixed", image_id, image_id)
    source.metadata.setdefault("without_keypoints", f"{name} has no keypoints")
    return source


def _read_yaml(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the path of its data.yaml")
    text = read_text(file, "data.yaml of YOLO")
    try:
        # BaseLoader keeps values as text: class names such as no and 1 must not become bool or int.
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{file} is not a yaml file: {one_line(error)}") from None
    if not isinstance(content, dict) or not content.get("names"):
        raise InputError(f"{file} is not a data.yaml of YOLO: it has no 'names'")
    return content


def _names(content: dict[str, Any], file: Path) -> dict[int, str]:
    value = content["names"]
    pairs = dict(value if isinstance(value, dict) else enumerate(value))
    try:
        names = {int(number): label.strip() for number, label in pairs.items()}
    except (ValueError, AttributeError):
        names = {}
    if isinstance(value, str) or not all(names.values()) or not names:
        raise InputError(f"{file}: 'names' must be a list of names, or number: name")
    if len(set(names.values())) < len(pairs):
        raise InputError(f"{file}: 'names' has a name or number twice")
    if "nc" in content and content["nc"] != str(len(names)):
        raise InputError(f"{file}: 'nc' is {content['nc']}, but 'names' has {len(names)}")
    return names


def _entries_of(content: dict[str, Any], split: str, file: Path) -> list[str]:
    """Returns the folders and lists of a split, as the yaml has them."""
    value = content.get(split) or content.get(_ALIASES.get(split, split))
    entries = [value] if isinstance(value, str) else value
    if value and not (isinstance(entries, list) and all(isinstance(e, str) and e for e in entries)):
        raise InputError(f"{file}: {split!r} must be a path or a list of paths")
    if not value:
        splits = ", ".join(key for key in _SPLITS if content.get(key)) or "none"
        raise InputError(f"{file} has no split '{split}' (existing splits: {splits})")
    return entries


def _place(entry: str, content: dict[str, Any], file: Path) -> Path:
    """Returns the path of a folder or list of a split. Raises InputError if it does not exist."""
    root = str(content.get("path") or "")
    tails = [entry] + ([entry[3:]] if entry.startswith("../") else [])
    tried = [folder / tail for tail in tails for folder in (file.parent / root, file.parent)]
    if Path(root).parts:  # a given `path` may start at the current folder, as in Ultralytics
        tried += [Path(root) / tail for tail in tails]
    for path in tried:
        if os.path.exists(path):
            return path
    missing = f"{entry!r} does not exist (looked for {printable(tried[0])})"
    raise InputError(f"{file}: the path {missing}{backslash_hint(entry + root)}")


def _images_of(place: Path, content: dict[str, Any], file: Path) -> list[Path]:
    if place.is_dir():
        if found := files_in(place, IMAGE_EXTENSIONS):
            return found
        raise InputError(f"{file}: the folder {printable(place)} has no images")
    if place.suffix.lower() in IMAGE_EXTENSIONS:
        return [place]
    lines = [line.strip() for line in read_text(place, "list of images").splitlines()]
    root = file.parent / str(content.get("path") or "")
    found = []
    for line in filter(None, lines):
        tails = (line, line.partition("/")[2])  # CVAT writes data/ before its paths
        tried = [folder / x for x in tails for folder in (place.parent, root, file.parent)]
        found.append(next(filter(os.path.isfile, tried), tried[0]))
    if not found:
        raise InputError(f"{place} lists no image")
    return found


def _relative(path: Path, folder: Path) -> str:
    # After a link to a folder, ".." is the parent of the target: resolve the links first.
    real = os.path.join(os.path.realpath(path.parent), path.name)
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()


def _label_file(image: Path) -> Path:
    """Returns the label file of an image: in `labels` beside `images`, or beside the image."""
    parts, places = list(image.parts), [image]
    if folders := [k for k, part in enumerate(parts[:-1]) if part == "images"]:
        parts[folders[-1]] = "labels"
        places = [Path(*parts), image]
    tried = [place.with_suffix(suffix) for place in places for suffix in (".txt", ".TXT")]
    return next(filter(os.path.isfile, tried), tried[0])


def _add_object(
    source: DataSource, image_id: str, words: list[str], place: str, has_keypoints: bool
) -> None:
    try:
        label, *numbers = map(float, words)
        if label != int(label) or not np.isfinite(numbers).all():
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"{place}: a line must be numbers, 'class x y width height'") from None
    if int(label) not in source.categories:
        raise InputError(f"{place}: 'names' has no class {int(label)}")
    note = partial(source.findings.add, place=place, image_id=image_id)
    if has_keypoints:  # they follow the box
        note("keypoints")
        why = f"{place}: YOLO keypoints are not supported and are ignored"
        source.metadata["without_keypoints"] = why
        numbers = numbers[:4]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise InputError(
            f"{place}: the line has {len(words)} numbers, but must be 'class x y width height' or "
            "a polygon, 'class x1 y1 x2 y2 x3 y3 ...'"
        )
    if min(numbers) < -_TOLERANCE or max(numbers) > 1 + _TOLERANCE:
        remedy = "divide px by the image width and height"
        if min(numbers) >= -1 and max(numbers) <= 2:
            remedy = "cut off what is outside; keypoints need 'kpt_shape' in data.yaml"
        raise InputError(
            f"{place}: values from {min(numbers):g} to {max(numbers):g} are not fractions of the "
            f"image (0 to 1): {remedy}"
        )
    size = source.images[image_id]["width"], source.images[image_id]["height"]
    in_px = (np.array(numbers).reshape(-1, 2) * size).reshape(-1).tolist()
    fields: dict[str, Any] = {"iscrowd": 0}
    shape = None
    if len(numbers) == 4:
        x, y, width, height = in_px
        box = [x - width / 2, y - height / 2, width, height]
    else:
        left, top = min(in_px[::2]), min(in_px[1::2])
        box = [left, top, max(in_px[::2]) - left, max(in_px[1::2]) - top]
        mask, shape = read_mask([in_px], size[::-1], note)
        fields |= {"segmentation": mask} if mask else {}
    if source.add_box(image_id, int(label), box, fields, place, shape) and shape is None:
        source.metadata.setdefault("without_mask", f"{place} has no mask")
