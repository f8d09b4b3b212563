"""Reads and checks a user's dataset of Pascal VOC xml files: a VOC tree or a folder of images."""

import math
import operator
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import InputError
from .files import IMAGE_EXTENSIONS, backslash_hint, files_in, printable, read_text
from .source import DataSource

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(name: str, root: str | Path, split: str, check_images: bool = True) -> DataSource:
    """Reads the images of a split of `root`, and the xml files with their objects.

    For a VOC tree, reads the images listed in `ImageSets/Main/<split>.txt`; a name may contain
    folders. Without this file, `<split>` is a folder of images with an xml beside each, as written
    by LabelImg and Roboflow; `.` is `root` itself. The image ids are the names without extension.
    As in Detectron2's own loader, pixels count from 1 and both corners belong to the box: (xmin,
    ymin, xmax, ymax) spans xmin - 1 to xmax and ymin - 1 to ymax. Keeps `difficult` objects, with
    a mark. With `check_images`, images must exist, be complete and have the size in the xml. Raises
    InputError if a file is missing or malformed, or if the image of an xml is ambiguous.
    """
    root = Path(root)
    source, files = _xml_files(name, root, split)
    # The evaluators of VOC's metric find the xml files again through these keys.
    source.metadata = {"dirname": str(root), "split": split, "year": 2012}
    source.metadata["without_mask"] = f"{source.file} has no masks"
    source.metadata["without_keypoints"] = f"{name} has no keypoints"
    trees = {stem: _parse(file, source.file, stem) for stem, file in files.items()}
    labels = {_label(item) for tree in trees.values() for item in tree.findall("object")}
    source.categories = dict(enumerate(sorted(labels - {""}), 1))
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in files_in(Path(source.image_dir), IMAGE_EXTENSIONS):
        relative = path.relative_to(source.image_dir)
        by_stem[relative.with_suffix("").as_posix()].append(relative.as_posix())
    xml_of: dict[str, str] = {}
    for stem, tree in trees.items():
        file, same_name = printable(files[stem]), by_stem.get(stem, [])
        file_name = _image_of(stem, tree, file, Path(source.image_dir), same_name)
        if (other := xml_of.setdefault(file_name, file)) != file:
            raise InputError(
                f"{other} and {file} both describe the image {printable(file_name)}: correct "
                "<filename>, or rename the xml"
            )
        size = {side: int(_number(tree, f"size/{side}", 0)) for side in ("width", "height")}
        source.add_image({"id": stem, "file_name": file_name, **size}, file, check_images)
        _add_objects(source, stem, tree, file)
    if os.path.isdir(source.file):  # not a list of images
        for image in sorted({name for names in by_stem.values() for name in names} - set(xml_of)):
            source.findings.add("no xml", image)
    return source


def _xml_files(name: str, root: Path, split: str) -> tuple[DataSource, dict[str, Path]]:
    """Returns the dataset, still empty, and the xml file of each image by the image's name."""
    split_file, folder = root / "ImageSets" / "Main" / f"{split}.txt", root / split
    found = [] if os.path.isfile(split_file) else files_in(folder, {".xml"})
    if not found:
        source = DataSource(name, str(split_file), str(root / "JPEGImages"))
        stems = _image_names(split_file, split, source)
        return source, {stem: root / "Annotations" / f"{stem}.xml" for stem in stems}
    xml_dir = image_dir = folder
    parts = {file.relative_to(folder).parts[0] for file in found}
    if len(parts) == 1 and {part.lower() for part in parts} <= {"annotations", "labels"}:
        xml_dir = folder / parts.pop()
        beside = (f for f in sorted(folder.iterdir()) if f.name.lower() in ("jpegimages", "images"))
        image_dir = next(filter(os.path.isdir, beside), folder)
    files = {file.relative_to(xml_dir).with_suffix("").as_posix(): file for file in found}
    return DataSource(name, str(folder), str(image_dir)), files


def _add_objects(source: DataSource, stem: str, tree: ET.Element, file: str) -> None:
    """Adds the objects of an xml. Raises InputError if a name or a corner is missing."""
    numbers = {label: number for number, label in source.categories.items()}
    for index, item in enumerate(tree.findall("object"), 1):
        if not (label := _label(item)):
            raise InputError(f"{file}: object {index} has no name")
        place = f"{file}: object {index}, '{label}'"
        corners = [_number(item, f"bndbox/{key}", math.nan) for key in _CORNERS]
        if any(map(math.isnan, corners)) or len(item.findall("bndbox")) > 1:
            raise InputError(f"{place} needs a bndbox with numbers {', '.join(_CORNERS)}")
        xmin, ymin, xmax, ymax = corners
        # A box one pixel wide has xmin == xmax, but in practice such a box is an accidental click.
        width = xmax - xmin + 1 if xmax > xmin else 0
        height = ymax - ymin + 1 if ymax > ymin else 0
        source.note_fractions(corners, stem, place)
        turns = [a for a in item.iter("attribute") if a.findtext("name") == "rotation"]
        if any(_number(turn, "value", 0) for turn in turns):
            source.findings.add("rotated", place, stem)
        fields = {"iscrowd": 0, "difficult": int(_number(item, "difficult", 0))}
        box = [xmin - 1, ymin - 1, width, height]
        source.add_box(stem, numbers[label], box, fields, place)


def _image_of(stem: str, tree: ET.Element, file: str, folder: Path, same_name: list[str]) -> str:
    """Returns the image of an xml, relative to ``folder``: the image in `<filename>`, or else the
    image in ``same_name``, the images with the xml's name. Raises InputError if both differ."""
    filename = (tree.findtext("filename") or "").strip()
    name = Path(filename).name  # empty for "."
    next_to_xml = Path(stem).with_name(name).as_posix() if name else ""
    # A bare file name that equals the xml's name can only mean the image next to the xml.
    is_path = "/" in filename or Path(filename).stem != Path(stem).name
    candidates = dict.fromkeys((next_to_xml, filename if is_path else ""))
    existing = [name for name in filter(None, candidates) if os.path.isfile(folder / name)]
    if not existing and len(same_name) > 1:
        raise InputError(f"{file}: {' and '.join(same_name)} exist: <filename> must say which")
    default = filename if "\\" in filename else next_to_xml or f"{stem}.jpg"
    image = [*existing, *same_name, default][0]
    if same_name and image not in same_name:
        raise InputError(
            f"{file}: <filename> is {printable(filename)}, but {same_name[0]} also exists: correct "
            "<filename>, or rename the xml"
        )
    return image


def _image_names(split_file: Path, split: str, source: DataSource) -> list[str]:
    if not os.path.isfile(split_file):
        splits = ", ".join(sorted(path.stem for path in split_file.parent.glob("*.txt"))) or "none"
        folder = printable(split_file.parents[2] / split)
        raise InputError(
            f"the VOC split file {printable(split_file)} does not exist (existing splits: {splits})"
            f", and the folder {folder} contains no xml files: if the xml files are beside the "
            "images, use . as the split"
        )
    text = read_text(split_file, "VOC split file")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"the VOC split file {split_file} lists no image")
    # The split file of a single class has a flag after each name, but a name may look the same:
    # `frame 0`. Some tools write the image names with extensions.
    folder = split_file.parents[2] / "Annotations"

    def have_xml(stems: list[str]) -> bool:
        return any(os.path.isfile(folder / f"{stem}.xml") for stem in stems)

    for ending in (r"\s+(-1|0|1)", r"\.(?i:bmp|jpe?g|png|tiff?|webp)"):
        short = [re.sub(f"{ending}$", "", name) for name in names]
        if all(map(operator.ne, names, short)) and not have_xml(names) and have_xml(short):
            names = short
    for name, number in Counter(names).items():
        if number > 1:
            source.findings.add("listed twice", name)
    return list(dict.fromkeys(names))


def _parse(xml_file: Path, referenced_by: str, stem: str) -> ET.Element:
    name = printable(xml_file)
    if not os.path.isfile(xml_file):
        missing = f"{name} does not exist{backslash_hint(stem)}"
        raise InputError(f"{printable(referenced_by)} lists {stem!r}, but {missing}")
    try:
        tree = ET.parse(xml_file).getroot()
    except (ET.ParseError, ValueError, LookupError, OSError) as error:  # two are for bad encodings
        raise InputError(f"{name} is not valid xml: {error}") from None
    objects = tree.findall("object")
    if objects != [*tree.iter("object")] or (tree.tag != "annotation" and not objects):
        raise InputError(
            f"{name} is not a VOC annotation: the root element must be <annotation> with the "
            f"<object>s directly inside, but the root is <{printable(tree.tag)}>"
        )
    return tree


def _label(item: ET.Element) -> str:
    return " ".join((item.findtext("name") or "").split())


def _number(tree: ET.Element, key: str, default: float) -> float:
    try:
        value = float(tree.findtext(key) or default)
    except ValueError:
        return default
    return value if math.isfinite(value) and abs(value) <= 1e9 else default
