"""A dataset as read from its files, and the checks that all formats share."""

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
from .findings import Findings

#: The endings of the names of the two parts of a split dataset.
PART_SUFFIXES = ("_train", "_val")
#: How many px a box may reach beyond its image without a warning: tools round differently.
TOLERANCE_PX = 1.5
# Limits of a plausible 'area' of an object without a mask, as shares of the area of its box.
_AREA_RATIOS = (0.02, 1.25)


class Shape(NamedTuple):
    """A mask's area in px² and the box around it, x, y, width, height in px."""

    area: float
    box: list[float]


@dataclass
class DataSource:
    """A dataset that was read but not registered yet, in COCO's terms."""

    name: str
    file: str  # the json, split file or folder, for messages
    image_dir: str  # the image file names are relative to this folder
    categories: dict[int, str] = field(default_factory=dict)  # id -> class name, as in the data
    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)  # by id
    #: COCO annotation dicts with boxes (x, y, width, height) in px. Boxes without area inside
    #: their image are left out, and recorded in ``findings`` as dropped.
    annotations: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    _added: set[Any] = field(default_factory=set)  # keys of files and boxes
    may_be_corners: bool = False  # whether all boxes would fit as x1, y1, x2, y2
    # Number of boxes of zeros and ones. As fractions, such a box is the whole image.
    _num_zero_one_boxes: int = 0

    def add_image(self, image: Mapping[str, Any], referenced_by: Any, check: bool = True) -> None:
        """Adds an image, a dict with ``id``, ``file_name``, ``width`` and ``height`` in px.

        Reads the size from the file if the size is missing or 0; otherwise, without ``check``,
        trusts the size. Raises InputError, naming the place ``referenced_by``, if
        :func:`check_image` finds a fault: a missing or truncated file, another size, over 8 bits.
        """
        width, height = int(image.get("width", 0)), int(image.get("height", 0))
        known = (width, height) if width and height else None
        if check or known is None:
            file = Path(self.image_dir, image["file_name"])
            width, height, orientation = check_image(file, str(referenced_by), known)
            # Orientations from 5 on swap the sides, so a matching size means the turned image.
            is_meant = orientation > 4 and known is not None and width != height
            if orientation > 1 and not is_meant:
                self.findings.add("turned", image["file_name"], image["id"])
        if (key := ("file", os.path.normpath(image["file_name"]))) in self._added:
            self.findings.add("same file", image["file_name"], image["id"])
        self._added.add(key)
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
        """Adds one annotation and returns True, or False if its box has no area in the image.

        ``box`` is x, y, width, height in px. ``fields`` are the other keys of the annotation, and
        ``mask`` is the shape of the mask in them. ``place`` locates the annotation in messages.
        """
        x, y, width, height = box
        image = self.images[image_id]
        right, bottom = x + width, y + height
        inside_x = min(right, image["width"]) - max(x, 0)
        inside_y = min(bottom, image["height"]) - max(y, 0)
        fits = 0 <= x < width <= image["width"] and 0 <= y < height <= image["height"]
        self.may_be_corners = self.may_be_corners and fits
        if min(width, height, inside_x, inside_y) <= 0:
            self.findings.add("dropped", place, image_id)
            return False
        if max(-x, -y, right - image["width"], bottom - image["height"]) > TOLERANCE_PX:
            self.findings.add("beyond", place, image_id)
        if (key := (image_id, category_id, *box)) in self._added:
            self.findings.add("twice", place, image_id)
        self._added.add(key)
        area = fields.get("area")
        if area is None or _is_implausible_area(area, width * height, mask):
            if area is not None:
                self.findings.add("area", place, image_id)
            area = width * height if mask is None else mask.area
        if mask is not None and _overlap(mask.box, box) < 0.25:
            self.findings.add("mask away", place, image_id)
        number = len(self.annotations) + 1  # pycocotools reads a match with id 0 as no match
        required = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box}
        self.annotations.append({**fields, **required, "area": area})
        return True

    def note_fractions(self, numbers: Sequence[float], image_id: int | str, place: str) -> None:
        """Records a box whose numbers in the file look like fractions of the image size."""
        image = self.images[image_id]
        if max(image["width"], image["height"]) > 4 and all(0 <= n <= 1 for n in numbers):
            if all(n == int(n) for n in numbers):
                self._num_zero_one_boxes += 1
            else:
                self.findings.add("fraction", place, image_id)

    def files(self) -> list[str]:
        """Returns the paths of the image files, with links resolved."""
        names = (image["file_name"] for image in self.images.values())
        return [os.path.realpath(os.path.join(self.image_dir, name)) for name in names]

    @property
    def num_boxes(self) -> int:
        """The number of boxes in the files, dropped ones included."""
        return len(self.annotations) + len(self.findings.places["dropped"])

    def check(self) -> None:
        """Makes the checks that need the whole dataset.

        Raises InputError if no box can be trained on and counted, if all boxes have fractions as
        coordinates, or if most boxes reach beyond their image but all fit as x1, y1, x2, y2.
        """
        places, number = self.findings.places, self.num_boxes
        mistake = ""
        if places["fraction"] and len(places["fraction"]) + self._num_zero_one_boxes == number:
            mistake = self.findings.describe("fraction", number)
        elif not self.annotations:
            lost = places["dropped"]
            why = f" with area inside its image, for example {lost[0]}" if lost else ""
            mistake = f"the dataset '{self.name}' has no boxes{why}"
        elif all(annotation["iscrowd"] for annotation in self.annotations):
            mistake = f"the dataset '{self.name}' has no box that can be trained on or counted: "
            mistake += f"all {len(self.annotations)} are crowds (iscrowd or ignore is 1)"
        elif self.may_be_corners and 2 * len(places["beyond"]) > number:
            mistake = f"{len(places['beyond'])} of {number} boxes extend beyond their image, for "
            mistake += f"example {places['beyond'][0]}: they seem to be x1, y1, x2, y2 but must be "
            mistake += "x, y, width, height"
        if mistake:
            raise InputError(f"{self.file}: {mistake}")

    def used_classes(self) -> list[str]:
        """Returns the names of the categories with a box that is no crowd, sorted by id."""
        used = {item["category_id"] for item in self.annotations if not item["iscrowd"]}
        return [self.categories[number] for number in sorted(used)]

    def drop_other_classes(self, names: Sequence[str]) -> None:
        """Removes the crowds of classes that are not in ``names``; ``findings`` records them."""
        others = {n: label for n, label in self.categories.items() if label not in names}
        for item in self.annotations:
            if label := others.get(item["category_id"]):
                where = self.images[item["image_id"]]["file_name"]
                self.findings.add("crowd", f"'{label}' in {where}", item["image_id"])
        self.annotations = [item for item in self.annotations if item["category_id"] not in others]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns the content of a COCO json with the classes `names`, whose ids are 1..K in order.

        Detectron2's COCOEvaluator assigns the class names to the sorted category ids. With ids in
        another order, it would report the AP of one class under the name of another class.
        """
        ids = {name: number for number, name in enumerate(names, 1)}
        annotations = [
            {**item, "category_id": ids[self.categories[item["category_id"]]]}
            for item in self.annotations
        ]
        return {
            "info": {},  # no paths: rambo-compare identifies data by this file's hash
            "images": list(self.images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }


def choose_held_out(images: Iterable[dict[str, Any]], number: int) -> set[Any]:
    """Returns the ids of ``number`` COCO image dicts, or of a few more.

    The choice depends on the file names alone, and looks random. Versions of one photo, which
    Roboflow names ``NAME.rf.HASH.jpg``, stay together.
    """

    def photo(image: dict[str, Any]) -> bytes:
        name = re.sub(r"\.rf\.[^./]+(?=\.\w+$)", "", str(image["file_name"]))
        return name.encode(errors="surrogateescape")  # the name of a file may be no UTF-8

    order = sorted(images, key=lambda image: hashlib.sha256(photo(image)).digest())
    while 0 < number < len(order) and photo(order[number]) == photo(order[number - 1]):
        number += 1
    return {image["id"] for image in order[:number]}


def _is_implausible_area(area: float, box: float, mask: Shape | None) -> bool:
    """Returns whether an area cannot be that of the object; differences up to 2 px² are fine."""
    low, high = (box * x for x in _AREA_RATIOS) if mask is None else (mask.area / 2, mask.area * 2)
    return area <= 0 or not low - 2 <= area <= high + 2


def _overlap(*boxes: list[float]) -> float:
    """Returns the IoU of two boxes x, y, width, height after enlarging both by 1 px."""
    one, other = ([[x, y, width + 1, height + 1]] for x, y, width, height in boxes)
    return float(pycocotools.mask.iou(one, other, [0])[0, 0])
