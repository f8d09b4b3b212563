"""Draws the quickstart's dataset into the cache folder and registers it with Detectron2."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2

from ..paths import cache_dir
from .drawing import CLASSES, SPEC, SPLITS, draw_image
from .files import make_folder
from .register import add_to_catalogs, class_metadata

logger = logging.getLogger(__name__)


def write_split(folder: Path, split: str, number: int) -> None:
    """Draws ``number`` images into ``folder/split``, and writes ``folder/split.json``."""
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = SPEC["image_px"]
    for index in range(number):
        image, objects = draw_image(split, index)
        name = f"{index:04d}.png"
        if not cv2.imwrite(str(folder / split / name), image):
            raise OSError(f"could not write {folder / split / name}")
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for label, box, area in objects:
            record = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1}
            annotations.append({**record, "bbox": box, "area": area, "iscrowd": 0})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def shapes_folder() -> Path:
    """Returns the dataset's folder in RAMBO_DET_CACHE, default ~/.cache/rambo_det, drawn or not."""
    digest = hashlib.sha256(json.dumps(SPEC, sort_keys=True).encode()).hexdigest()
    return cache_dir() / f"shapes-{digest[:12]}"


def prepare_shapes() -> Path:
    """Draws the dataset unless the cache has it; returns the dataset's folder.

    Draws into a temporary folder and renames it in one step. So a killed process leaves no partial
    dataset, and two processes that draw at the same time end with one dataset.
    """
    folder = shapes_folder()
    if folder.is_dir():
        return folder
    make_folder(folder.parent)
    logger.info("drawing the quickstart's images into %s", folder)
    with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder.parent) as scratch:
        new = Path(scratch, "new")
        try:
            for split in SPLITS:
                write_split(new, split, SPEC["images"][split])
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def register_shapes() -> None:
    """Registers `rambo_shapes_train` and `rambo_shapes_val` with Detectron2, if not done yet.

    The images are drawn when a dataset is first loaded, not here.
    """
    from detectron2.data import DatasetCatalog

    folder = shapes_folder()
    for split in SPLITS:
        name = f"rambo_shapes_{split}"
        if name not in DatasetCatalog.list():
            file, images = folder / f"{split}.json", folder / split
            add_to_catalogs(name, file, images, class_metadata(CLASSES), prepare_shapes)
