"""Read and check a user's data set in Pascal VOC's folder layout."""

import logging
import math
import operator
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from ..errors import InputError
from .files import about_backslashes, image_size
from .source import DataSource

logger = logging.getLogger(__name__)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(name: str, root: str | Path, split: str, check_images: bool = True) -> DataSource:
    """Read `ImageSets/Main/<split>.txt` of `root` and the annotations that it names.

    Image ids are the names in the split file, which may name folders: `cam1/0001` is
    `Annotations/cam1/0001.xml`. An image is the one that its xml names in `filename`, beside
    where the id says; if there is none, the one that is called as the xml.

    As in Detectron2's own loader, pixels count from 1 and both corners belong to the box: (xmin,
    ymin, xmax, ymax) spans xmin - 1 to xmax and ymin - 1 to ymax. `difficult` objects are kept and
    marked.

    Args:
        name: the data set's name.
        root: the folder that holds `Annotations/`, `ImageSets/Main/` and `JPEGImages/`.
        split: e.g. `train`.
        check_images: whether images must be there, complete and of the size that the xml says.

    Raises:
        InputError: a file is missing, truncated or malformed; a size is wrong.
    """
    root = Path(root)
    split_file, folder = root / "ImageSets" / "Main" / f"{split}.txt", root / "JPEGImages"
    source = DataSource(name, str(split_file), str(folder))
    # A set that is read by evaluators of VOC's metric needs to be found again.
    source.metadata = {"dirname": str(root), "split": split, "year": 2012}
    source.metadata["without_mask"] = str(split_file)
    files = _annotation_files(root / "Annotations", split_file)
    annotations = {stem: _parse(stem, file, split_file) for stem, file in files.items()}
    labels = {_label(item) for tree in annotations.values() for item in tree.findall("object")}
    numbers = {label: index + 1 for index, label in enumerate(sorted(labels - {""}))}
    source.categories = {number: label for label, number in numbers.items()}

    renamed = []
    for stem, tree in annotations.items():
        own, path = _image_paths(folder / stem, tree)
        if own.is_file() and own.stem != path.stem:
            renamed.append(f"{files[stem]} names {path}, not {own}")
        width, height = (int(_number(tree, f"size/{side}", 0)) for side in ("width", "height"))
        unknown = 0 in (width, height)  # some tools leave it out
        if unknown:
            width, height = image_size(path, str(files[stem]))
        inside = path.relative_to(folder) if path.is_relative_to(folder) else path
        image = {"id": stem, "file_name": str(inside), "width": width, "height": height}
        source.add_image(image, files[stem], check_images and not unknown)
        for item in tree.findall("object"):
            label, box = _label(item), _box(item, files[stem])
            fields = {"iscrowd": 0, "difficult": int(_number(item, "difficult", 0))}
            source.add_box(stem, numbers[label], box, fields)
    if renamed:
        text = "%d xml file(s) name another image than the one called as they are: %s"
        logger.warning(text, len(renamed), renamed[0])
    return source


def _annotation_files(folder: Path, split_file: Path) -> dict[str, Path]:
    """Image name -> its xml, which need not exist, in the order of the split file."""
    if not split_file.is_file():
        there = sorted(path.stem for path in split_file.parent.glob("*.txt"))
        found = f"splits there: {', '.join(there)}" if there else "the folder has no splits"
        raise InputError(f"the VOC split file {split_file} does not exist ({found})")
    try:
        lines = split_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"the VOC split file {split_file} is not in UTF-8: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"the VOC split file {split_file} names no image")

    def any_exists(stems: list[str]) -> bool:
        return any((folder / f"{stem}.xml").is_file() for stem in stems)

    # Class-wise split files have a flag behind each name, but a name may end like one: "frame 0".
    short = [re.sub(r"\s+(-1|0|1)$", "", name) for name in names]
    flagged = all(map(operator.ne, names, short))
    if flagged and not any_exists(names) and any_exists(short):
        names = short
    if len(set(names)) < len(names):
        logger.warning("%s names %d images twice", split_file, len(names) - len(set(names)))
    return {name: folder / f"{name}.xml" for name in names}


def _parse(stem: str, xml_file: Path, split_file: Path) -> ET.Element:
    if not xml_file.is_file():
        hint = about_backslashes(stem)
        raise InputError(f"{split_file} names '{stem}', but {xml_file} does not exist{hint}")
    try:
        return ET.parse(xml_file).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:  # the latter two of its encoding
        raise InputError(f"{xml_file} is not valid xml: {error}") from None


def _image_paths(base: Path, tree: ET.Element) -> tuple[Path, Path]:
    """The image that is called as its xml, and the one to read; either may be missing."""
    known = [base.with_name(base.name + ending) for ending in _IMAGE_ENDINGS]
    own = next((path for path in known if path.is_file()), known[0])
    named = base.parent / ((tree.findtext("filename") or "").strip() or own.name)
    return own, named if named.is_file() or not own.is_file() else own


def _label(item: ET.Element) -> str:
    return (item.findtext("name") or "").strip()


def _number(tree: ET.Element, key: str, default: float) -> float:
    try:
        value = float(tree.findtext(key) or default)
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def _box(item: ET.Element, xml_file: Path) -> list[float]:
    """x, y, width and height in px of an object, which has a name."""
    if not (label := _label(item)):
        raise InputError(f"{xml_file}: an object has no name")
    corners = [_number(item, f"bndbox/{key}", math.nan) for key in _CORNERS]
    if any(math.isnan(value) for value in corners):
        raise InputError(f"{xml_file}: '{label}' needs a bndbox with numbers {', '.join(_CORNERS)}")
    xmin, ymin, xmax, ymax = corners
    # A box of one pixel would have xmin == xmax; in practice that is a slip of the mouse.
    width = xmax - xmin + 1 if xmax > xmin else 0
    height = ymax - ymin + 1 if ymax > ymin else 0
    return [xmin - 1, ymin - 1, width, height]
