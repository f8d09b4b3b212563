"""Read and check a user's data set in Pascal VOC's folder layout."""

import logging
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from rambo_det.data.catalog import DataSource, register_sources
from rambo_det.data.files import check_image, image_size
from rambo_det.errors import InputError

logger = logging.getLogger(__name__)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def register_voc(
    name: str, root: str | Path, split: str, classes: Sequence[str] | None = None
) -> list[str]:
    """Register one VOC data set with Detectron2 and return its class names.

    Without `classes` they are the names found in the xml files of this split, sorted: pass the
    classes of the training set when registering a test set, or use `register_datasets` for both.

    Raises:
        InputError: the name is taken or the data is not usable; see `read_voc`.
    """
    return register_sources([read_voc(name, root, split)], classes)


def read_voc(name: str, root: str | Path, split: str) -> DataSource:
    """Read one split of a VOC folder and check it and every image that it names.

    Boxes without any area inside their image are dropped, with one warning.

    Raises:
        InputError: a file is missing, truncated or malformed; a size is wrong; no boxes.
    """
    source = parse_voc(name, root, split)
    source.finish()
    return source


def parse_voc(name: str, root: str | Path, split: str, check_images: bool = True) -> DataSource:
    """Read `ImageSets/Main/<split>.txt` of `root` and the annotations that it names.

    Image ids are the names in the split file. As in Detectron2's own loader, pixels count from 1
    and both corners belong to the box: (xmin, ymin, xmax, ymax) spans xmin - 1 to xmax and
    ymin - 1 to ymax. `difficult` objects are kept and marked.

    Args:
        name: the data set's name.
        root: the folder that holds `Annotations/`, `ImageSets/Main/` and `JPEGImages/`.
        split: e.g. `train`.
        check_images: whether images must be there, complete and of the size that the xml says.

    Raises:
        InputError: a file is missing, truncated or malformed; a size is wrong.
    """
    root = Path(root)
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    source = DataSource(name, str(split_file), str(root / "JPEGImages"))
    # A set that is read by evaluators of VOC's metric needs to be found again.
    source.metadata = {"dirname": str(root), "split": split, "year": 2012}
    source.metadata["without_mask"] = str(split_file)
    annotations = {}
    for stem in _image_names(split_file):
        annotations[stem] = _parse(root / "Annotations" / f"{stem}.xml", split_file)
    labels = {_label(item) for tree in annotations.values() for item in tree.findall("object")}
    source.categories = {index + 1: label for index, label in enumerate(sorted(labels - {""}))}

    for stem, tree in annotations.items():
        xml_file = root / "Annotations" / f"{stem}.xml"
        path = _image_path(root / "JPEGImages", stem, tree)
        size = (int(_number(tree, "size/width", 0)), int(_number(tree, "size/height", 0)))
        if 0 in size:  # some tools leave it out
            size = image_size(path, str(xml_file))
        elif check_images:
            check_image(path, size, str(xml_file))
        image = {"id": stem, "file_name": path.name, "width": size[0], "height": size[1]}
        source.images[stem] = image
        for item in tree.findall("object"):
            _add_object(source, stem, item, xml_file)
    return source


def _image_names(split_file: Path) -> list[str]:
    if not split_file.is_file():
        there = sorted(path.stem for path in split_file.parent.glob("*.txt"))
        found = f"splits there: {', '.join(there)}" if there else "the folder has no splits"
        raise InputError(f"the VOC split file {split_file} does not exist ({found})")
    try:
        lines = split_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"the VOC split file {split_file} is not in UTF-8: {error}") from None
    # Class-wise split files have a flag behind the name.
    names = [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()]
    if not names:
        raise InputError(f"the VOC split file {split_file} names no image")
    if len(set(names)) < len(names):
        logger.warning("%s names %d images twice", split_file, len(names) - len(set(names)))
    return list(dict.fromkeys(names))


def _parse(xml_file: Path, split_file: Path) -> ET.Element:
    if not xml_file.is_file():
        raise InputError(f"{split_file} names '{xml_file.stem}', but {xml_file} does not exist")
    try:
        return ET.parse(xml_file).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:  # the latter two of its encoding
        raise InputError(f"{xml_file} is not valid xml: {error}") from None


def _image_path(folder: Path, stem: str, tree: ET.Element) -> Path:
    for path in (folder / (stem + ending) for ending in _IMAGE_ENDINGS):
        if path.is_file():
            return path
    return folder / (tree.findtext("filename") or f"{stem}.jpg").strip()


def _label(item: ET.Element) -> str:
    return (item.findtext("name") or "").strip()


def _number(tree: ET.Element, key: str, default: float) -> float:
    try:
        value = float(tree.findtext(key) or default)
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def _add_object(source: DataSource, stem: str, item: ET.Element, xml_file: Path) -> None:
    label = _label(item)
    if not label:
        raise InputError(f"{xml_file}: an object has no name")
    corners = [_number(item, f"bndbox/{key}", math.nan) for key in _CORNERS]
    if any(math.isnan(value) for value in corners):
        raise InputError(f"{xml_file}: '{label}' needs a bndbox with numbers {', '.join(_CORNERS)}")
    xmin, ymin, xmax, ymax = corners
    # A box of one pixel would have xmin == xmax; in practice that is a slip of the mouse.
    width = xmax - xmin + 1 if xmax > xmin else 0
    height = ymax - ymin + 1 if ymax > ymin else 0
    number = next(number for number, name in source.categories.items() if name == label)
    fields = {"iscrowd": 0, "difficult": int(_number(item, "difficult", 0))}
    source.add_box(stem, number, [xmin - 1, ymin - 1, width, height], fields)
