"""The output of --check-data for a dataset: statistics, and a page of images with their boxes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from tabulate import tabulate
from tqdm import tqdm

from ..data.files import check_image, make_folder
from ..errors import InputError
from ..evaluation.pictures import delayed_interrupt, draw_detections, grid
from .files import write_picture

_PICTURES, _COLUMNS = 24, 6
#: COCO's limits between small, medium and large boxes, as edges of a square in px.
_SMALL, _LARGE = 32, 96


def write_pages(names: Sequence[str], folder: Path) -> str:
    """Writes a page ``NAME_boxes.jpg`` for each dataset; returns the text to print about all.

    A page has at most 24 images: first those in which the checks found something odd, then others,
    evenly spread over the dataset. Raises InputError if the folder cannot be written, or at the
    first image that cannot be read completely.
    """
    make_folder(folder, "--check-data")
    texts = []
    for name in names:
        # Detectron2 does not need annotations in a test set, nor the id or the size of an image.
        stock = {"annotations": [], "image_id": None}
        records = [{**stock, **record} for record in DatasetCatalog.get(name)]
        metadata = MetadataCatalog.get(name)
        page = folder / f"{name.replace('/', '_')}_boxes.jpg"
        if page.resolve() in (Path(record["file_name"]).resolve() for record in records):
            raise InputError(
                f"--check-data {folder}: {page.name} is an image of {name}: use another folder"
            )
        for record in tqdm(records, desc=name, unit="image", disable=None):
            size = (record["width"], record["height"]) if "width" in record else None
            whole = check_image(Path(record["file_name"]), name, size, decode=True)
            record["width"], record["height"] = whole[:2]
        flagged = set(metadata.get("flagged_images") or ())
        chosen = [record for record in records if record["image_id"] in flagged][:_PICTURES]
        others = [record for record in records if record["image_id"] not in flagged]
        step = max(1, len(others) // _PICTURES)
        chosen += others[::step][: _PICTURES - len(chosen)]
        with delayed_interrupt():
            pictures = [_draw(record, metadata) for record in chosen]
        write_picture(page, grid(pictures, _COLUMNS)[:, :, ::-1], 85)
        texts.append(f"{name}: {summary(records, metadata.get('thing_classes') or ())}\n{page}")
    return "\n\n".join(texts)


def summary(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
    """Describes images, boxes and classes of a dataset in Detectron2's format: text and a table."""
    boxes = [(a, _box(a)) for record in records for a in record["annotations"]]
    edges = [max(0, (x2 - x1) * (y2 - y1)) ** 0.5 for _, (x1, y1, x2, y2) in boxes]
    small, large = sum(e < _SMALL for e in edges), sum(e >= _LARGE for e in edges)
    empty = sum(not record["annotations"] for record in records)
    sizes = [(record["width"], record["height"]) for record in records]
    lines = [
        f"{len(records)} images, {empty} of them without boxes; {len(boxes)} boxes",
        f"images: {min(w for w, _ in sizes)} to {max(w for w, _ in sizes)} px wide, "
        f"{min(h for _, h in sizes)} to {max(h for _, h in sizes)} px high",
        f"boxes: {small} small (below {_SMALL}² px), {len(boxes) - small - large} medium, "
        f"{large} large (from {_LARGE}² px on)",
    ]
    for key, title in (("iscrowd", "crowds"), ("difficult", "difficult")):
        if number := sum(bool(a.get(key)) for a, _ in boxes):
            lines.append(f"{title}: {number}")
    in_images = Counter(
        k for record in records for k in {a["category_id"] for a in record["annotations"]}
    )
    counts = Counter(a["category_id"] for a, _ in boxes)
    rows = [(name, counts[index], in_images[index]) for index, name in enumerate(classes)]
    return "\n".join([*lines, tabulate(rows, ("class", "boxes", "images"), "github")])


def _box(annotation: dict[str, Any]) -> list[float]:
    """Returns x1, y1, x2, y2 in px."""
    return list(BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS))


def _draw(record: dict[str, Any], metadata: Any) -> np.ndarray:
    image = read_image(record["file_name"], format="RGB")
    objects, annotations = Instances(image.shape[:2]), record["annotations"]
    objects.pred_boxes = Boxes(torch.tensor([_box(a) for a in annotations]).reshape(-1, 4))
    objects.pred_classes = torch.tensor([a["category_id"] for a in annotations]).long()
    return draw_detections(np.ascontiguousarray(image), objects, metadata)
