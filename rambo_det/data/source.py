"""A data set as it was read, and the checks that hold for every format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import check_image

logger = logging.getLogger(__name__)


@dataclass
class DataSource:
    """A data set that was read but not registered yet, in COCO's terms.

    Attributes:
        name: what it will be called in Detectron2's catalogs.
        file: the json or split file, for messages.
        image_dir: the folder that image file names start from.
        categories: category id -> class name, as the data has them.
        images: image id -> COCO image dict.
        annotations: COCO annotation dicts, boxes (x, y, width, height) in px.
        metadata: what else goes into the MetadataCatalog.
        dropped: number of boxes that have no area inside their image.
        guessed_areas: number of objects whose area cannot be.
    """

    name: str
    file: str
    image_dir: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    guessed_areas: int = 0

    def add_image(self, image: Mapping[str, Any], named_in: Any, check: bool = True) -> None:
        """Append an image, a dict with ``id``, ``file_name``, ``width`` and ``height`` in px.

        Args:
            image: as above.
            named_in: the file that names it, for the message.
            check: whether it is looked at; otherwise what the dict says is believed.

        Raises:
            InputError: it is missing, truncated or of another size.
        """
        size = (int(image["width"]), int(image["height"]))
        if check:
            check_image(Path(self.image_dir, image["file_name"]), size, str(named_in))
        self.images[image["id"]] = {**image, "width": size[0], "height": size[1]}

    def add_box(
        self, image_id: int | str, category_id: int, box: list[float], fields: Mapping[str, Any]
    ) -> bool:
        """Append one annotation, unless its box has no area inside the image; whether it did.

        Annotations are numbered from 1: pycocotools takes a match with number 0 for no match.
        """
        x, y, width, height = box
        image = self.images[image_id]
        inside_x = min(x + width, image["width"]) - max(x, 0)
        inside_y = min(y + height, image["height"]) - max(y, 0)
        if min(width, height, inside_x, inside_y) <= 0:
            self.dropped += 1
            return False
        required = {"image_id": image_id, "category_id": category_id, "bbox": box}
        number = {"id": len(self.annotations) + 1}
        self.annotations.append({"area": width * height, **fields, **required, **number})
        return True

    def finish(self) -> None:
        """Say how many boxes were dropped; raise InputError if none is left that counts."""
        if not self.annotations:
            raise InputError(f"{self.file}: the data set '{self.name}' has no boxes")
        if not self.used_classes(crowds=False):
            raise InputError(
                f"{self.file}: all boxes of the data set '{self.name}' are crowds ('iscrowd' or "
                "'ignore' is 1), which are neither trained on nor counted: give single objects 0"
            )
        if self.dropped:
            text = "%s: dropped %d box(es) without area inside their image"
            logger.warning(text, self.file, self.dropped)
        if self.guessed_areas:
            text = "%s: %d 'area'(s) cannot be in px²: took those of the masks or boxes"
            logger.warning(text, self.file, self.guessed_areas)

    def used_classes(self, crowds: bool = True) -> list[str]:
        """Names of the categories that have a box (a crowd or not), in the order of their ids."""
        used = {a["category_id"] for a in self.annotations if crowds or not a["iscrowd"]}
        return [self.categories[number] for number in sorted(used)]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The content of a COCO json with exactly the classes `names`, of ids 1..K in that order.

        Detectron2's COCOEvaluator takes the class names for those of the sorted category ids: ids
        in another order would put the APs of classes under each other's names.
        """
        ids = {names.index(name) + 1: name for name in names}
        new = {old: k for old, name in self.categories.items() for k in ids if ids[k] == name}
        annotations = [
            {**item, "category_id": new[item["category_id"]]} for item in self.annotations
        ]
        return {
            "info": {"description": f"made from {self.file}"},
            "images": list(self.images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in ids.items()],
        }
