"""A data set as it was read, and the checks that hold for every format."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pycocotools.mask

from ..errors import InputError
from .files import check_image
from .odd import Odd

#: What follows the name of a data set in those of its parts.
PARTS = ("_train", "_val")
#: So many px a box may reach beyond its image before it is said: tools round in their own ways.
SLACK = 1.5
# An area without a mask may be that of the object: between these parts of its box's.
_AREAS = (0.02, 1.25)


class Shape(NamedTuple):
    """A mask's area in px² and the box around it, x, y, width, height in px."""

    area: float
    box: list[float]


@dataclass
class DataSource:
    """A data set that was read but not registered yet, in COCO's terms."""

    name: str
    file: str  # the json, split file or folder, for messages
    image_dir: str  # where image file names start from
    categories: dict[int, str] = field(default_factory=dict)  # id -> class name, as the data has it
    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)  # by id
    #: COCO annotation dicts, boxes (x, y, width, height) in px; those without area inside their
    #: image are not among them, but are noted down in ``odd`` as dropped.
    annotations: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    odd: Odd = field(default_factory=Odd)
    _seen: set[Any] = field(default_factory=set)
    _may_be_corners: bool = True
    _num_units: int = 0  # boxes of zeros and ones, among fractions as large as their image

    def add_image(self, image: Mapping[str, Any], named_in: Any, check: bool = True) -> None:
        """Append an image, a dict with ``id``, ``file_name``, ``width`` and ``height`` in px.

        A size that is missing or 0 is that of the file; without ``check`` another one is believed.
        InputError, which says where the file is named, if it is missing, truncated, of another size
        or of more than 8 bits.
        """
        width, height = int(image.get("width", 0)), int(image.get("height", 0))
        known = (width, height) if width and height else None
        if check or known is None:
            file = Path(self.image_dir, image["file_name"])
            width, height, orientation = check_image(file, str(named_in), known)
            # From 5 on the sides are swapped: a size tells that the turned image is meant.
            is_meant = orientation > 4 and known is not None and width != height
            if orientation in range(2, 9) and not is_meant:
                self.odd.add("turned", image["file_name"], image["id"])
        if (key := ("file", os.path.normpath(image["file_name"]))) in self._seen:
            self.odd.add("same file", image["file_name"], image["id"])
        self._seen.add(key)
        self.images[image["id"]] = {**image, "width": width, "height": height}

    def add_box(
        self,
        image_id: int | str,
        category_id: int,
        box: list[float],
        fields: Mapping[str, Any],
        place: str,
        mask: Shape | None = None,
    ) -> bool:
        """Append one annotation, unless its box has no area inside the image; whether it did.

        ``box`` is x, y, width, height in px, ``fields`` what else the annotation has, ``place``
        where it is, for messages, ``mask`` that which is among the fields.
        """
        x, y, width, height = box
        image = self.images[image_id]
        right, bottom = x + width, y + height
        inside_x = min(right, image["width"]) - max(x, 0)
        inside_y = min(bottom, image["height"]) - max(y, 0)
        inside = 0 < width <= image["width"] and 0 < height <= image["height"]
        as_corners = x < width and y < height and inside and min(x, y) >= 0
        self._may_be_corners = self._may_be_corners and as_corners
        if min(width, height, inside_x, inside_y) <= 0:
            self.odd.add("dropped", place, image_id)
            return False
        beyond = max(-x, -y, right - image["width"], bottom - image["height"])
        if beyond > SLACK:
            self.odd.add("beyond", place, image_id)
        if (key := (image_id, category_id, *box)) in self._seen:
            self.odd.add("twice", place, image_id)
        self._seen.add(key)
        area = fields.get("area")
        if area is None or _is_far(area, width * height, mask):
            if area is not None:
                self.odd.add("area", place, image_id)
            area = width * height if mask is None else mask.area
        if mask is not None and _overlap(mask.box, box) < 0.25:
            self.odd.add("mask away", place, image_id)
        number = len(self.annotations) + 1  # pycocotools takes a match with number 0 for no match
        required = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box}
        self.annotations.append({**fields, **required, "area": area})
        return True

    def note_fractions(self, numbers: Sequence[float], image_id: int | str, place: str) -> None:
        """Note down a box whose numbers, as the file has them, look like parts of 1."""
        image = self.images[image_id]
        if max(image["width"], image["height"]) <= 4 or not all(0 <= n <= 1 for n in numbers):
            return
        if all(n == int(n) for n in numbers):
            self._num_units += 1
        else:
            self.odd.add("fraction", place, image_id)

    def files(self) -> list[str]:
        """The image files, without links."""
        names = (image["file_name"] for image in self.images.values())
        return [os.path.realpath(os.path.join(self.image_dir, name)) for name in names]

    @property
    def num_boxes(self) -> int:
        """How many boxes the files have, dropped ones included."""
        return len(self.annotations) + len(self.odd.places("dropped"))

    def finish(self) -> None:
        """Judge what only the whole data set shows.

        InputError if there is no box that can be trained on and counted, all boxes have fractions
        for coordinates, or most of them can only be corners.
        """
        fractions, lost, beyond = map(self.odd.places, ("fraction", "dropped", "beyond"))
        mistake = ""
        if fractions and len(fractions) + self._num_units == self.num_boxes:
            mistake = f"all {self.num_boxes} boxes have fractions between 0 and 1 for coordinates, "
            mistake += f"such as {fractions[0]}: multiply them by width and height of the image"
        elif not self.annotations:
            why = f" with area inside its image, such as {lost[0]}" if lost else ""
            mistake = f"the data set '{self.name}' has no boxes{why}"
        elif all(annotation["iscrowd"] for annotation in self.annotations):
            mistake = f"the data set '{self.name}' has no box that can be trained on or counted: "
            mistake += f"all {len(self.annotations)} are crowds (iscrowd or ignore is 1)"
        elif self._may_be_corners and 2 * len(beyond) > self.num_boxes:
            mistake = f"{len(beyond)} of {self.num_boxes} boxes reach beyond their image, such as "
            mistake += f"{beyond[0]}: they are x1, y1, x2, y2 and must be x, y, width, height"
        if mistake:
            raise InputError(f"{self.file}: {mistake}")

    def used_classes(self) -> list[str]:
        """Names of the categories that have a box which is no crowd, in the order of their ids."""
        used = {item["category_id"] for item in self.annotations if not item["iscrowd"]}
        return [self.categories[number] for number in sorted(used)]

    def keep_classes(self, names: Sequence[str]) -> None:
        """Leave out the crowds of other classes."""
        for item in self.annotations:
            if (label := self.categories[item["category_id"]]) not in names:
                where = self.images[item["image_id"]]["file_name"]
                self.odd.add("crowd", f"'{label}' in {where}", item["image_id"])
        kept = {number for number, label in self.categories.items() if label in names}
        self.annotations = [item for item in self.annotations if item["category_id"] in kept]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The content of a COCO json with exactly the classes `names`, of ids 1..K in that order.

        Detectron2's COCOEvaluator takes the class names for those of the sorted category ids: ids
        in another order would put the APs of classes under each other's names.
        """
        ids = {name: number for number, name in enumerate(names, 1)}
        annotations = [
            {**item, "category_id": ids[self.categories[item["category_id"]]]}
            for item in self.annotations
        ]
        return {
            "info": {},  # nothing of where the data lie: rambo-compare tells data by this file
            "images": list(self.images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }


def set_aside(images: Iterable[dict[str, Any]], number: int) -> set[Any]:
    """The ids of so many COCO image dicts, or of a few more.

    Which ones depends on file names alone, and looks random. Versions of a photo, which Roboflow
    calls ``NAME.rf.HASH.jpg``, stay together.
    """

    def photo(image: dict[str, Any]) -> str:
        return re.sub(r"\.rf\.[^./]+(?=\.\w+$)", "", str(image["file_name"]))

    order = sorted(images, key=lambda image: hashlib.sha256(photo(image).encode()).digest())
    while 0 < number < len(order) and photo(order[number]) == photo(order[number - 1]):
        number += 1
    return {image["id"] for image in order[:number]}


def _is_far(area: float, box: float, mask: Shape | None) -> bool:
    """Whether an area cannot be that of the object; 2 px² are nothing."""
    if mask is None:
        return area <= 0 or not (_AREAS[0] * box - 2 <= area <= _AREAS[1] * box + 2)
    return area <= 0 or not (mask.area / 2 - 2 <= area <= mask.area * 2 + 2)


def _overlap(*boxes: list[float]) -> float:
    """IoU of two boxes x, y, width, height, both made larger by 1 px."""
    one, other = ([[x, y, width + 1, height + 1]] for x, y, width, height in boxes)
    return float(pycocotools.mask.iou(one, other, [0])[0, 0])
