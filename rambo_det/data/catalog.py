"""Put checked data sets into Detectron2's catalogs."""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rambo_det.cache import cache_folder
from rambo_det.data.files import make_folder
from rambo_det.errors import InputError

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
    """

    name: str
    file: str
    image_dir: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0

    def add_box(
        self, image_id: int | str, category_id: int, box: list[float], fields: Mapping[str, Any]
    ) -> bool:
        """Append one annotation, unless its box has no area inside the image; whether it did."""
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
        """Say how many boxes were dropped; raise InputError if none is left."""
        if not self.annotations:
            raise InputError(f"{self.file}: the data set '{self.name}' has no boxes")
        if self.dropped:
            text = "%s: dropped %d box(es) without area inside their image"
            logger.warning(text, self.file, self.dropped)

    def used_classes(self) -> list[str]:
        """Names of the categories that have a box, in the order of their ids."""
        used = {annotation["category_id"] for annotation in self.annotations}
        return [self.categories[number] for number in sorted(used)]


def register_sources(
    sources: Sequence[DataSource],
    classes: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    json_dir: Path | None = None,
) -> list[str]:
    """Register data sets that share one list of classes, and return that list.

    Args:
        sources: what `read_coco` and `read_voc` returned.
        classes: the class names in the order of the model's outputs; by default those that have
            a box in the training sets.
        train: names of the training sets; the others may only have classes that these have. By
            default, or when none of `sources` is among them, all sets count.
        json_dir: where the json files that evaluation reads are written; by default a folder in
            the cache.

    Raises:
        InputError: a name is taken, or a set has a class that is not in the list. Nothing is
            registered then.
    """
    from detectron2.data import DatasetCatalog

    taken = set(DatasetCatalog.list())
    for source in sources:
        if source.name in taken:
            raise InputError(f"a data set named '{source.name}' is already registered")
        taken.add(source.name)
    names = _class_names(sources, classes, train)
    files = [write_json(source.name, _coco_json(source, names), json_dir) for source in sources]
    for source, file in zip(sources, files, strict=True):
        _register(source, file, names)
    return names


def _class_names(
    sources: Sequence[DataSource], classes: Sequence[str] | None, train: Sequence[str] | None
) -> list[str]:
    deciding = [source for source in sources if source.name in (train or ())] or sources
    found = list(dict.fromkeys(name for s in deciding for name in s.used_classes()))
    names = found if classes is None else list(classes)
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"classes must be different names, none empty, but are {names}")
    origin = "the training data's" if classes is None else "the given"
    for source in sources:
        for unknown in [name for name in source.used_classes() if name not in names]:
            raise InputError(
                f"{source.file}: class '{unknown}' is not among {origin} classes: "
                f"{', '.join(names)}"
            )
    for missing in [name for name in names if name not in found]:
        logger.warning("no training box has the class '%s'", missing)
    return names


def _coco_json(source: DataSource, names: list[str]) -> dict[str, Any]:
    """The source as COCO json with exactly the classes `names`, whose ids are 1..K in that order.

    Detectron2's COCOEvaluator takes the class names for those of the sorted category ids: ids in
    another order would put the APs of classes under each other's names.
    """
    ids = {
        number: names.index(name) + 1 for number, name in source.categories.items() if name in names
    }
    annotations = [{**item, "category_id": ids[item["category_id"]]} for item in source.annotations]
    return {
        "info": {"description": f"made from {source.file}"},
        "images": list(source.images.values()),
        "annotations": annotations,
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(names)],
    }


def write_json(name: str, content: dict[str, Any], json_dir: Path | None) -> Path:
    """Write the file under a name made from its content: it can never be out of date."""
    folder = cache_folder() / "annotations" if json_dir is None else Path(json_dir)
    make_folder(folder)
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder / f"{re.sub(r'[^-.0-9A-Za-z]', '_', name)}-{digest}.json"
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)  # in one step: several processes may write the same file
    return path


def _register(source: DataSource, json_file: Path, names: list[str]) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    load = partial(load_records, str(json_file), source.image_dir, source.name)
    DatasetCatalog.register(source.name, load)
    MetadataCatalog.get(source.name).set(
        json_file=str(json_file),
        image_root=source.image_dir,
        evaluator_type="coco",
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(names))},
        **source.metadata,
    )


def load_records(json_file: str, image_dir: str, name: str) -> list[dict[str, Any]]:
    """The records of a COCO json in Detectron2's form, VOC's mark of difficult objects included."""
    from detectron2.data.datasets import load_coco_json

    records: list[dict[str, Any]] = load_coco_json(json_file, image_dir, name, ["difficult"])
    return records
