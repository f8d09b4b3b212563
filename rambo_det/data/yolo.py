"""Reads and checks a user's dataset in YOLO format, as written by Ultralytics and Roboflow."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import InputError
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
    points = content.get("kpt_shape")
    paths = [path for place in places for path in _images_of(place, content, file)]
    images_of: dict[Path, Path] = {}
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
        if (other := images_of.setdefault(label, path)) != path:
            raise InputError(
                f"{printable(label)} would be of both {printable(path)} and {printable(other)}"
            )
        lines = read_text(label, "label file").splitlines()
        for number, line in enumerate(lines, 1):
            if words := line.split():
                _add_object(source, image_id, words, f"{printable(label)}:{number}", points)
    if paths and len(source.findings.places("no label")) == len(source.images):
        raise InputError(
            f"{source.file}: none of its {len(source.images)} images has a label file; that of "
            f"{paths[0]} would be {_label_file(paths[0])}"
        )
    labels = {_label_file(path) for path in paths}
    folders = {label.parent for label in labels} if all(p.is_dir() for p in places) else ()
    for folder in sorted(folders):  # a list may leave out images
        for left in files_in(folder, {".txt"}):
            about = left.name.lower().startswith(("classes", "notes", "readme", "labels"))
            if left.parent == folder and left not in labels and not about:
                source.findings.add("no image", _relative(left, file.parent))
    polygons = [a["image_id"] for a in source.annotations if "segmentation" in a]
    if len(polygons) < len(source.annotations):
        for image_id in polygons:
            source.findings.add("mixed", image_id, image_id)
    source.metadata.setdefault("without_keypoints", f"{name} has no key points")
    return source


def _read_yaml(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise InputError(f"{file} is a folder: name the data.yaml in it")
    text = read_text(file, "data.yaml of YOLO")
    try:
        # BaseLoader keeps values as text: class names such as no and 1 must not become bool or int.
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{file} is not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content.get("names"):
        raise InputError(f"{file} is not a data.yaml of YOLO: it has no 'names'")
    return content


def _names(content: dict[str, Any], file: Path) -> dict[int, str]:
    names = content["names"]
    pairs = dict(names if isinstance(names, dict) else enumerate(names))
    try:
        found = {int(number): label.strip() for number, label in pairs.items()}
    except (ValueError, AttributeError):
        found = {}
    if isinstance(names, str) or not all(found.values()) or not found:
        raise InputError(f"{file}: 'names' must be a list of names, or number: name")
    if len(set(found.values())) < len(pairs):
        raise InputError(f"{file}: 'names' has a name or number twice")
    if "nc" in content and content["nc"] != str(len(found)):
        raise InputError(f"{file}: 'nc' is {content['nc']}, but 'names' has {len(found)}")
    return found


def _entries_of(content: dict[str, Any], split: str, file: Path) -> list[str]:
    """Returns the folders and lists of a split, as the yaml has them."""
    value = content.get(split) or content.get(_ALIASES.get(split, split))
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(e, str) and e for e in entries):
        there = [key for key in _SPLITS if content.get(key)]
        raise InputError(f"{file} has no split '{split}', only {', '.join(there) or 'none'}")
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
    more = backslash_hint(entry + root)
    raise InputError(f"{file}: {printable(entry)!r} is not there, {printable(tried[0])}{more}")


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
        tried = [place.parent / line, root / line, file.parent / line]
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
    beside, parts = image.with_suffix(".txt"), list(image.parts)
    folders = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if not folders:
        return beside
    parts[folders[-1]] = "labels"
    there = Path(*parts).with_suffix(".txt")
    return beside if os.path.isfile(beside) and not os.path.isfile(there) else there


def _add_object(
    source: DataSource, image_id: str, words: list[str], where: str, points: Any
) -> None:
    try:
        label, *numbers = [float(word) for word in words]
        fits = label == int(label) and bool(np.isfinite(numbers).all())
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"{where}: a line must be numbers, 'class x y width height'")
    if int(label) not in source.categories:
        raise InputError(f"{where}: 'names' has no class {int(label)}")
    if points:  # keypoints follow the box
        source.findings.add("key points", where, image_id)
        source.metadata["without_keypoints"] = f"{where}: key points of YOLO are not read"
        numbers = numbers[:4]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise InputError(
            f"{where}: {len(words)} numbers are neither 'class x y width height' nor a polygon, "
            "'class x1 y1 x2 y2 x3 y3 ...'"
        )
    if min(numbers) < -_TOLERANCE or max(numbers) > 1 + _TOLERANCE:
        raise InputError(
            f"{where}: {min(numbers):g} to {max(numbers):g} are no parts of the image, from 0 to "
            "1: divide px by its width and height"
        )
    image = source.images[image_id]
    width, height = image["width"], image["height"]
    fields: dict[str, Any] = {"iscrowd": 0}
    shape = None
    if len(numbers) == 4:
        x, y, w, h = (n * side for n, side in zip(numbers, (width, height) * 2, strict=True))
        box = [x - w / 2, y - h / 2, w, h]
    else:
        corners = np.array(numbers).reshape(-1, 2) * (width, height)
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        box = [float(left), float(top), float(right - left), float(bottom - top)]
        polygon = corners.reshape(-1).tolist()
        mask, shape = read_mask([polygon], (height, width), source.findings, where)
        fields |= {"segmentation": mask} if mask else {}
    if source.add_box(image_id, int(label), box, fields, where, shape) and shape is None:
        source.metadata.setdefault("without_mask", f"{where} has no mask")
