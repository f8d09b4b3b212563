"""Read and check a user's data set of Pascal VOC's xml files: a VOC tree, or a folder of images."""

import math
import operator
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import InputError
from .files import image_size, images_in, read_text, shown
from .source import DataSource

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(name: str, root: str | Path, split: str, check_images: bool = True) -> DataSource:
    """Read the images of a split of `root`, and the xml files of their objects.

    Of a VOC tree they are those in `ImageSets/Main/<split>.txt`, whose names may have folders.
    Without such a file `<split>` is a folder of images with an xml beside each, as LabelImg and
    Roboflow write them; `.` is `root` itself. Image ids are the names without ending. As in
    Detectron2's own loader, pixels count from 1 and both corners belong to the box: (xmin, ymin,
    xmax, ymax) spans xmin - 1 to xmax and ymin - 1 to ymax. `difficult` objects are kept, marked.

    Args:
        name: the data set's name.
        root: the folder that holds `Annotations/`, `ImageSets/Main/` and `JPEGImages/`, or images.
        split: e.g. `train`, or `.`.
        check_images: whether images must be there, complete and of the size that the xml says.

    Raises:
        InputError: a file is missing, truncated or malformed; a size is wrong; it cannot be known
            which image an xml is of.
    """
    root = Path(root)
    split_file, folder = root / "ImageSets" / "Main" / f"{split}.txt", root / split
    is_plain = not split_file.is_file() and folder.is_dir() and any(folder.rglob("*.xml"))
    if is_plain:
        xml_dir = _first_folder(folder, "Annotations", "annotations")
        image_dir = _first_folder(folder, "JPEGImages", "images")
        source = DataSource(name, str(folder), str(image_dir))
        files = {
            file.relative_to(xml_dir).with_suffix("").as_posix(): file
            for file in sorted(xml_dir.rglob("*.xml"))
        }
    else:
        source = DataSource(name, str(split_file), str(root / "JPEGImages"))
        stems = _image_names(split_file, split, source)
        files = {stem: root / "Annotations" / f"{stem}.xml" for stem in stems}
    # A set that is read by evaluators of VOC's metric needs to be found again.
    source.metadata = {"dirname": str(root), "split": split, "year": 2012}
    source.metadata["without_mask"] = f"{source.file} has no masks"
    source.metadata["without_keypoints"] = f"{name} has no key points"
    annotations = {stem: _parse(file, source.file, stem) for stem, file in files.items()}
    labels = {_label(item) for tree in annotations.values() for item in tree.findall("object")}
    numbers = {label: index + 1 for index, label in enumerate(sorted(labels - {""}))}
    source.categories = {number: label for label, number in numbers.items()}

    images = _Images(Path(source.image_dir))
    for stem, tree in annotations.items():
        file_name = images.of(stem, tree, files[stem])
        width, height = (int(_number(tree, f"size/{side}", 0)) for side in ("width", "height"))
        unknown = 0 in (width, height)  # some tools leave it out
        if unknown:
            width, height = image_size(Path(source.image_dir, file_name), shown(files[stem]))
        image = {"id": stem, "file_name": file_name, "width": width, "height": height}
        source.add_image(image, shown(files[stem]), check_images and not unknown)
        for index, item in enumerate(tree.findall("object")):
            corners = _corners(item, files[stem])
            place = f"{shown(files[stem])}: object {index + 1}, '{_label(item)}'"
            source.note_fractions(corners, stem, place)
            fields = {"iscrowd": 0, "difficult": int(_number(item, "difficult", 0))}
            source.add_box(stem, numbers[_label(item)], _box(corners), fields, place)
    if is_plain:
        used = {image["file_name"] for image in source.images.values()}
        for left in sorted(images.names() - used):
            source.odd.add("no xml", left)
    return source


def _first_folder(folder: Path, *names: str) -> Path:
    return next((f for f in (folder / name for name in names) if f.is_dir()), folder)


class _Images:
    """The image files below a folder, by their names without ending."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in images_in(folder) if folder.is_dir() else ():
            name = path.relative_to(folder)
            self._by_stem[name.with_suffix("").as_posix()].append(name.as_posix())
        self._taken: dict[str, str] = {}

    def names(self) -> set[str]:
        return {name for names in self._by_stem.values() for name in names}

    def of(self, stem: str, tree: ET.Element, xml_file: Path) -> str:
        """The image that an xml is of, relative to the folder.

        It is the one that `<filename>` says, beside others of its folder, or else the one that is
        called as the xml. InputError if these are two, or if another xml has it.
        """
        said = (tree.findtext("filename") or "").strip()
        beside = Path(stem).with_name(Path(said).name).as_posix() if said else ""
        own = self._by_stem.get(stem, [])
        # A name with another folder than the xml's cannot be meant by a bare file name.
        inside = said if said and ("/" in said or Path(said).stem != Path(stem).name) else ""
        there = [n for n in dict.fromkeys((beside, inside)) if n and (self._folder / n).is_file()]
        if not there and len(own) > 1:
            raise InputError(
                f"{shown(xml_file)}: {' and '.join(own)} are there: <filename> must say which"
            )
        found = there[0] if there else own[0] if own else beside or f"{stem}.jpg"
        if "\\" in said and not there and not own:
            found = said  # the message will name it
        if own and found not in own:
            raise InputError(
                f"{shown(xml_file)}: <filename> says {shown(said)}, but {own[0]} is there too: "
                "correct <filename>, or rename the xml"
            )
        if (other := self._taken.setdefault(found, stem)) != stem:
            raise InputError(
                f"{shown(xml_file)}: its image {shown(found)} is that of {other}.xml too: correct "
                "<filename>, or rename the xml"
            )
        return found


def _image_names(split_file: Path, split: str, source: DataSource) -> list[str]:
    if not split_file.is_file():
        there = sorted(path.stem for path in split_file.parent.glob("*.txt"))
        found = f"splits there: {', '.join(there)}" if there else "the folder has no splits"
        root = split_file.parents[2]
        if (root / split).is_dir():
            raise InputError(
                f"the folder {shown(root / split)} has no xml files, and there is no split file "
                f"{shown(split_file)} ({found})"
            )
        if not there and root.is_dir() and any(root.glob("*.xml")):
            found = f"for all images with an xml in {root}, write . for the split"
        raise InputError(f"the VOC split file {shown(split_file)} does not exist ({found})")
    text = read_text(split_file, "VOC split file")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"the VOC split file {split_file} names no image")
    # The files of a class have a flag behind each name. A name may look like that: `frame 0`.
    short = [re.sub(r"\s+(-1|0|1)$", "", name) for name in names]
    folder = split_file.parents[2] / "Annotations"
    are_there = [any((folder / f"{n}.xml").is_file() for n in found) for found in (names, short)]
    if all(map(operator.ne, names, short)) and are_there == [False, True]:
        names = short
    for name, number in Counter(names).items():
        if number > 1:
            source.odd.add("listed twice", name)
    return list(dict.fromkeys(names))


def _parse(xml_file: Path, named_in: str, stem: str) -> ET.Element:
    if not xml_file.is_file():
        slashes = ": it has backslashes, write / for folders" if "\\" in stem else ""
        raise InputError(
            f"{shown(named_in)} names {shown(stem)!r}, but {shown(xml_file)} does not exist"
            f"{slashes}"
        )
    try:
        tree = ET.parse(xml_file).getroot()
    except (ET.ParseError, ValueError, LookupError, OSError) as error:  # two of its encoding
        raise InputError(f"{shown(xml_file)} is not valid xml: {error}") from None
    if len([*tree.iter("object")]) != len(tree.findall("object")) or (
        tree.tag != "annotation" and tree.find("object") is None
    ):
        raise InputError(
            f"{shown(xml_file)} is not VOC's: <object> must lie in the <annotation> that the file "
            f"has, which begins with <{shown(tree.tag)}>"
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


def _corners(item: ET.Element, xml_file: Path) -> list[float]:
    """xmin, ymin, xmax, ymax of an object, which has a name."""
    if not (label := _label(item)):
        raise InputError(f"{shown(xml_file)}: an object has no name")
    corners = [_number(item, f"bndbox/{key}", math.nan) for key in _CORNERS]
    if any(math.isnan(value) for value in corners) or len(item.findall("bndbox")) > 1:
        raise InputError(
            f"{shown(xml_file)}: '{label}' needs a bndbox with numbers {', '.join(_CORNERS)}"
        )
    return corners


def _box(corners: list[float]) -> list[float]:
    """x, y, width and height in px."""
    xmin, ymin, xmax, ymax = corners
    # A box of one pixel would have xmin == xmax; in practice that is a slip of the mouse.
    width = xmax - xmin + 1 if xmax > xmin else 0
    height = ymax - ymin + 1 if ymax > ymin else 0
    return [xmin - 1, ymin - 1, width, height]
